import numpy as np
import pytest
import torch
from clouds import cloud, is_clear, related, rotation, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.cknna import cknna, cknna_grid, cknna_paired
from vlalign_utils.analysis.prepared_layers import prepare


def naive_hsic(k: list[list[float]], el: list[list[float]]) -> float:
    """Song et al. 2012, equation 5, in loops: the matrices need not be symmetric."""
    n, items = len(k), range(len(k))
    trace = sum(k[i][j] * el[j][i] for i in items for j in items)
    cross = sum(k[i][q] * el[q][j] for i in items for q in items for j in items)
    sums = sum(map(sum, k)) * sum(map(sum, el))
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def naive_kept(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float]:
    """HSIC of the published definition on items of unit length: across, own of x, own of y."""
    n = len(x)
    grams, near = [], []
    for points in (x, y):
        gram = [[float(a @ b) for b in points] for a in points]
        grams.append(gram)
        near.append(
            [set(sorted((j for j in range(n) if j != i), key=lambda j: -gram[i][j])[:k]) for i in range(n)]
        )

    def kept(one: int, other: int) -> float:
        both = [near[one][i] & near[other][i] for i in range(n)]
        masked = [[[g[i][j] * (j in both[i]) for j in range(n)] for i in range(n)] for g in grams]
        return naive_hsic(masked[one], masked[other])

    return kept(0, 1), kept(0, 0), kept(1, 1)


def naive_cknna(x: Tensor, y: Tensor, k: int) -> float:
    across, own_x, own_y = naive_kept(x, y, k)
    return across / ((own_x * own_y) ** 0.5 + 1e-6)


def normalised(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("k", [2, 5, 11])
def test_cknna_is_the_published_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 7)  # blocks that do not divide the items
    (x,), (y,) = related(0, n=25)
    for one, other in ((x, y), (y, x)):  # the published measure is not symmetric
        assert cknna(one, other, k) == pytest.approx(naive_cknna(normalised(one), normalised(other), k))


def test_grid_cells_are_pairs_of_standardised_layers() -> None:
    x, y = cloud(0, 20, layers=3), cloud(0, 20, layers=2) + cloud(1, 20, layers=2)
    grid = cknna_grid(prepare(x, 4), prepare(y, 4))
    for i in range(3):
        for j in range(2):
            assert grid[i, j].item() == pytest.approx(naive_cknna(unit(x[i]), unit(y[j]), 4))


def test_shuffled_grid_is_the_grid_of_shuffled_items() -> None:
    x, y = related(3, layers=2)
    orders = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    null = cknna_paired(prepare(x, 6), prepare(y, 6), orders)
    for grid, order in zip(null, orders, strict=True):
        assert torch.allclose(grid, cknna_grid(prepare(x, 6), prepare(y[:, order], 6)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_cknna_ignores_rotation_scale_and_order(seed: int, scale: float) -> None:
    (x,), (y,) = related(seed)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(40))
    moved = scale * (y @ rotation(seed + 2))
    assert cknna(x[order], moved[order], 5) == pytest.approx(cknna(x, y, 5), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 8, 2), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(1, 9),
)
def test_any_input_gives_a_number_or_a_clear_error(points: np.ndarray, k: int) -> None:
    x, y = torch.from_numpy(points)
    for measure in (cknna, lambda x, y, k: cknna_grid(prepare(x[None], k), prepare(y[None], k)).item()):
        try:
            assert np.isfinite(measure(x, y, k))
        except ValueError as error:
            if not is_clear(error):
                raise


def test_one_neighbour_or_different_numbers_are_refused() -> None:
    x, y = related(0)
    with pytest.raises(ValueError, match="40 items with 1 and 1 neighbours"):
        cknna(x[0], y[0], k=1)
    with pytest.raises(ValueError, match="40 items with 5 and 4 neighbours"):
        cknna_grid(prepare(x, 5), prepare(y, 4))


def test_a_layer_whose_own_hsic_is_not_positive_is_named() -> None:
    # Four items, two neighbours each: few enough for the unbiased estimate to fall below 0.
    for seed in range(1000):
        points = normalised(cloud(seed, n=4, d=3)[0])
        if naive_kept(points, points, 2)[1] <= 0:
            break
    with pytest.raises(ValueError, match="layer 0: too few of the k = 2 neighbours are mutual"):
        cknna(points, points, 2)
