from functools import partial

import numpy as np
import pytest
import torch
from clouds import HARD, cloud, hard, is_clear, related, rotation, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.information_imbalance import (
    imbalance_grid,
    imbalance_paired,
    information_imbalance,
)
from vlalign_utils.analysis.prepared_layers import prepare
from vlalign_utils.evidence.nulls import shuffled


def naive_ranks(x: Tensor, y: Tensor) -> list[int]:
    """For each item, the place in y of its nearest neighbour in x, by sorting everything."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        nearest = min(others, key=lambda j: float((x[i] - x[j]).norm()))
        order = sorted(others, key=lambda j: float((y[i] - y[j]).norm()))
        found.append(1 + order.index(nearest))
    return found


def test_terms_are_the_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 7)  # blocks that do not divide the items
    (x,), (y,) = related(0)
    terms = information_imbalance(x, y[:, :3])
    assert terms.tolist() == pytest.approx([2 / 40 * rank for rank in naive_ranks(x, y[:, :3])])


@pytest.mark.parametrize("name", HARD)
def test_terms_are_the_naive_loop_where_rounding_loses_neighbours(name: str) -> None:
    x, y = hard(name, n=40), hard(name, n=40).flip(1)[:, :60]
    ranks = naive_ranks(x.double(), y.double())
    assert information_imbalance(x, y).tolist() == pytest.approx([2 / 40 * rank for rank in ranks])


def test_delta_is_dadapys() -> None:
    # DADApy 0.3.4, numpy 1.26.4, x and y as below:
    # MetricComparisons(coordinates=x, maxk=299).return_information_imbalace(y, subset_size=2000)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5))
    y = x[:, :3] + 0.5 * rng.standard_normal((300, 3))
    x_to_y = information_imbalance(torch.from_numpy(x), torch.from_numpy(y)).mean().item()
    y_to_x = information_imbalance(torch.from_numpy(y), torch.from_numpy(x)).mean().item()
    assert (x_to_y, y_to_x) == pytest.approx((0.33540000000000003, 0.4942666666666667), abs=1e-12)


def test_grid_cells_are_pairs_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 16)
    x, y = cloud(0, layers=3), cloud(0, layers=2) + cloud(1, layers=2)
    grid = imbalance_grid(prepare(x, 2), prepare(y, 2))
    assert grid.shape == (3, 2, 40)
    for i in range(3):
        for j in range(2):
            expected = [2 / 40 * rank for rank in naive_ranks(unit(x[i]), unit(y[j]))]
            assert grid[i, j].tolist() == pytest.approx(expected)


def test_shuffled_grid_is_the_grid_of_shuffled_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 16)
    x, y = related(3, layers=2)
    orders = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    null = imbalance_paired(prepare(x, 2), prepare(y, 2), orders)
    for grid, order in zip(null, orders, strict=True):
        expected = imbalance_grid(prepare(x, 2), prepare(y[:, order], 2)).mean(dim=-1)
        assert torch.allclose(grid, expected)


def test_shuffled_pairs_are_at_one_and_true_pairs_below_all_of_them() -> None:
    x, y = (prepare(side, 2) for side in related(5, 200))
    null = shuffled(partial(imbalance_paired, x, y), 200, permutations=100)
    assert null.mean().item() == pytest.approx(1, abs=0.02)
    assert imbalance_grid(x, y).mean() < null.min()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_delta_ignores_rotation_scale_and_shift(seed: int, scale: float) -> None:
    (x,), (y,) = related(seed)
    moved = scale * (y @ rotation(seed + 2)) + 3.0
    assert torch.equal(information_imbalance(x, y), information_imbalance(x, moved))
    assert information_imbalance(y, moved).mean().item() == pytest.approx(2 / 40)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_terms_follow_a_permutation_of_the_items(seed: int) -> None:
    (x,), (y,) = related(seed)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(40))
    assert torch.equal(information_imbalance(x, y)[order], information_imbalance(x[order], y[order]))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (2, 8, 2), elements=st.floats(-1e3, 1e3, width=32)))
def test_any_input_gives_a_rank_or_a_clear_error(points: np.ndarray) -> None:
    x, y = torch.from_numpy(points)
    try:
        terms = information_imbalance(x, y)
        grid = imbalance_grid(prepare(x[None], 1), prepare(y[None], 1))
    except ValueError as error:
        if not is_clear(error):
            raise
    else:
        for found in (terms, grid):
            assert ((found >= 2 / 8) & (found <= 2 * 7 / 8)).all()


def test_different_numbers_of_items_are_refused() -> None:
    x, y = prepare(cloud(0), 2), prepare(cloud(1, 39), 2)
    with pytest.raises(ValueError, match="40 items on one side and 39 on the other"):
        imbalance_grid(x, y)


def test_duplicates_on_either_side_are_refused() -> None:
    (x,), (y,) = related(0)
    doubled = y.clone()
    doubled[3] = doubled[10]
    for pair in ((x, doubled), (doubled, x)):
        with pytest.raises(ValueError, match="only 39 of 40 items differ"):
            information_imbalance(*pair)
