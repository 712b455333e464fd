import numpy as np
import pytest
import torch
from torch import Tensor

from vlalign_utils.analysis.cka import linear_cka
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.evidence.nulls import above_strongest, half_samples, shuffled


def test_all_pairings_are_given_at_once_and_are_seeded() -> None:
    given: list[Tensor] = []

    def paired(orders: Tensor) -> Tensor:
        given.append(orders)
        return orders[:, :1].double()

    first, again, other = (shuffled(paired, 8, permutations=5, seed=seed) for seed in (0, 0, 1))
    assert len(given) == 3
    assert given[0].sort(dim=-1).values.tolist() == [list(range(8))] * 5
    assert torch.equal(first, again)
    assert not torch.equal(given[0], given[2])
    assert other.shape == (5, 1)


def test_half_samples_of_a_mean_have_its_standard_error() -> None:
    values = rng(0, "test").standard_normal((200, 2)) * [1.0, 3.0]
    band = half_samples(lambda items: values[items].mean(axis=0), 200, repeats=2000)
    error = values.std(axis=0, ddof=1) / np.sqrt(200)
    assert band.value.tolist() == pytest.approx(values.mean(axis=0).tolist())
    assert ((band.high - band.low) / 2).tolist() == pytest.approx((1.96 * error).tolist(), rel=0.06)
    assert band.n == 200


@pytest.mark.slow
def test_half_samples_of_cka_are_as_wide_as_its_spread_over_new_items() -> None:
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(rng(seed, "items").standard_normal((120, 3)))
        return x, x + torch.from_numpy(rng(seed, "noise").standard_normal((120, 3)))

    spread = np.std([linear_cka(*drawn(seed)) for seed in range(200)])
    widths = []
    for seed in range(10):
        x, y = drawn(seed)
        band = half_samples(lambda items, x=x, y=y: np.array([linear_cka(x[items], y[items])]), 120)
        widths.append((band.high - band.low)[0] / 2 / 1.96)
    assert np.mean(widths) == pytest.approx(spread, rel=0.2)


def test_what_is_above_the_strongest_null_is_above_each() -> None:
    stream = rng(0, "values")
    values, one, other = (stream.random((40, 5)) for _ in range(3))
    other[:, 3] += 1
    found = above_strongest(values, {"one": one, "other": other, "flat": np.full((40, 1), 0.1)})
    for point in range(5):
        null = max((one[:, point], other[:, point]), key=np.mean)
        assert found[:, point] == pytest.approx(values[:, point] - null)
    with pytest.raises(ValueError, match="there is no null"):
        above_strongest(values, {})
