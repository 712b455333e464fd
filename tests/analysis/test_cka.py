from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from clouds import cloud, is_clear, related, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.cka import cka_grid, cka_paired, linear_cka
from vlalign_utils.analysis.neighbours import standardise
from vlalign_utils.analysis.prepared_layers import prepare
from vlalign_utils.evidence.nulls import shuffled


def naive_hsic(k: Tensor, el: Tensor) -> float:
    """Song et al. 2012, equation 4: the U-statistic itself, a mean over all ordered draws of four items."""
    total, n = 0.0, len(k)
    for i, j, q, r in permutations(range(n), 4):
        total += k[i, j].item() * (el[i, j] + el[q, r] - 2 * el[i, q]).item()
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def naive_cka(x: Tensor, y: Tensor) -> float:
    k, el = x @ x.T, y @ y.T
    return naive_hsic(k, el) / (naive_hsic(k, k) * naive_hsic(el, el)) ** 0.5


def test_cka_is_the_u_statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 4)  # blocks that do not divide the items
    (x,), (y,) = related(0, n=9, d=3)
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), abs=1e-10)


def test_grid_cells_are_pairs_of_standardised_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 4)
    x, y = cloud(0, 9, 3, layers=3), cloud(1, 9, 4, layers=2)
    grid = cka_grid(prepare(x, 2), prepare(y, 2))
    for i in range(3):
        for j in range(2):
            expected = naive_cka(standardise(x[i]), standardise(y[j]))
            assert grid[i, j].item() == pytest.approx(expected, abs=1e-10)


def test_shuffled_grid_is_the_grid_of_shuffled_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 16)
    x, y = related(3, layers=2)
    orders = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    null = cka_paired(prepare(x, 2), prepare(y, 2), orders)
    for grid, order in zip(null, orders, strict=True):
        assert torch.allclose(grid, cka_grid(prepare(x, 2), prepare(y[:, order], 2)))


def test_unrelated_pairs_are_at_zero_with_few_items_and_true_pairs_above() -> None:
    x, y = (prepare(side, 2) for side in related(5, n=30, d=60))
    null = shuffled(partial(cka_paired, x, y), 30, permutations=200)
    assert null.mean().item() == pytest.approx(0, abs=0.02)  # the plain estimator is near 0.7 here
    assert cka_grid(x, y)[0, 0] > null.max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_cka_ignores_rotation_scale_shift_and_order(seed: int, scale: float) -> None:
    (x,), (y,) = related(seed)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(40))
    moved = scale * (y @ rotation(seed + 2)) + 3.0
    assert linear_cka(x[order], moved[order]) == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert linear_cka(y, moved) == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (2, 6, 2), elements=st.floats(-1e3, 1e3, width=32)))
def test_any_input_gives_a_number_up_to_one_or_a_clear_error(points: np.ndarray) -> None:
    x, y = torch.from_numpy(points)
    try:
        found = linear_cka(x, y)
    except ValueError as error:
        if not is_clear(error):
            raise
    else:
        assert abs(found) <= 1 + 1e-6


def test_items_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="layer 0: the Gram matrix does not vary"):
        linear_cka(cloud(0)[0], torch.ones(40, 3, dtype=torch.float64))


def test_three_items_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 items; there are 3"):
        linear_cka(cloud(0, n=3)[0], cloud(1, n=3)[0])
