import numpy as np
import pytest
import torch
from clouds import HARD, hard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from vlalign_utils.analysis import neighbours
from vlalign_utils.evidence.intervals import rng


def cloud(seed: int, n: int = 60, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_overlap(x: Tensor, y: Tensor, k: int) -> list[float]:
    def sets(points: Tensor) -> list[set[int]]:
        found = []
        for i, centre in enumerate(points):
            order = sorted(
                (j for j in range(len(points)) if j != i), key=lambda j: float((points[j] - centre).norm())
            )
            found.append(set(order[:k]))
        return found

    return [len(a & b) / k for a, b in zip(sets(x), sets(y), strict=True)]


def test_overlap_is_the_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 7)  # blocks that do not divide the items
    x, y = cloud(0), cloud(0) + 0.5 * cloud(1)
    assert neighbours.neighbourhood_overlap(x, y, k=6).tolist() == pytest.approx(naive_overlap(x, y, 6))


def test_mutual_knn_is_the_naive_loop_on_prepared_features() -> None:
    def prepare(x: Tensor) -> Tensor:
        x = (x - x.mean(0)) / x.std(0, correction=0)
        return x / x.norm(dim=1, keepdim=True)

    x, y = cloud(2), cloud(2) + cloud(3)
    assert neighbours.mutual_knn(x, y, k=4).tolist() == pytest.approx(
        naive_overlap(prepare(x), prepare(y), 4)
    )


def test_grid_cells_are_pairs_of_layers() -> None:
    x = torch.stack([cloud(s) for s in range(3)])
    y = torch.stack([cloud(s + 1) for s in range(2)])
    grid = neighbours.overlap_grid(neighbours.layer_neighbours(x, 5), neighbours.layer_neighbours(y, 5))
    assert grid.shape == (3, 2, 60)
    for i in range(3):
        for j in range(2):
            assert torch.equal(grid[i, j], neighbours.mutual_knn(x[i], y[j], k=5))
    assert grid[1, 0].eq(1).all()


def test_shuffled_grid_is_the_grid_of_shuffled_items() -> None:
    x, y = cloud(0)[None], (cloud(0) + cloud(1))[None]
    null = neighbours.shuffled_grids(
        neighbours.layer_neighbours(x, 5), neighbours.layer_neighbours(y, 5), 3, seed=4
    )
    stream = rng(4, "shuffled pairs")
    for shuffled in null:
        order = torch.as_tensor(stream.permutation(60))
        assert shuffled.item() == pytest.approx(neighbours.mutual_knn(x[0], y[0, order], k=5).mean().item())


def test_shuffled_pairs_are_at_chance_and_true_pairs_above_all_of_them() -> None:
    x, y = cloud(5, 200)[None], (cloud(5, 200) + 0.3 * cloud(6, 200))[None]
    ix, iy = neighbours.layer_neighbours(x, 10), neighbours.layer_neighbours(y, 10)
    null = neighbours.shuffled_grids(ix, iy, permutations=100)
    assert null.mean().item() == pytest.approx(10 / 199, rel=0.05)
    assert neighbours.overlap_grid(ix, iy).mean() > null.max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), k=st.integers(1, 20))
def test_overlap_ignores_rotation_scale_and_shift(seed: int, scale: float, k: int) -> None:
    x, y = cloud(seed), cloud(seed + 1)
    rotation = torch.linalg.qr(cloud(seed + 2, 5, 5)).Q
    moved = scale * (x @ rotation) + 3.0
    assert torch.equal(
        neighbours.neighbourhood_overlap(x, y, k), neighbours.neighbourhood_overlap(moved, y, k)
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 20))
def test_overlap_follows_a_permutation_of_the_items(seed: int, k: int) -> None:
    x, y = cloud(seed), cloud(seed) + cloud(seed + 1)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(x)))
    assert torch.equal(neighbours.mutual_knn(x, y, k)[order], neighbours.mutual_knn(x[order], y[order], k))


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (12, 3), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(1, 15),
)
def test_any_input_gives_a_fraction_or_a_clear_error(x: np.ndarray, k: int) -> None:
    points = torch.from_numpy(x)
    for measure in (neighbours.neighbourhood_overlap, neighbours.mutual_knn):
        try:
            assert measure(points, points, k).eq(1).all()
        except ValueError as error:
            if not any(word in str(error) for word in ("differ", "neighbours need", "no direction")):
                raise


def test_standardising_removes_scale_per_feature_and_centres_constants() -> None:
    x = cloud(7) * torch.tensor([1e-3, 1.0, 1e3, 0.0, 5.0]) + torch.tensor([0.0, 1.0, 2.0, 0.1, 4.0])
    z = neighbours.standardise(x)
    assert torch.allclose(z.mean(0), torch.zeros(5, dtype=x.dtype), atol=1e-9)
    assert z.pow(2).mean(0).tolist() == pytest.approx([1, 1, 1, 0, 1])


def test_standardising_by_others_uses_nothing_of_the_items() -> None:
    x, others = cloud(7), 3 + 2 * cloud(8)
    z = neighbours.standardise(x, reference=others)
    assert torch.allclose(z, (x - others.mean(0)) / others.std(0, correction=0))
    assert torch.equal(z[:5], neighbours.standardise(x[:5], reference=others))


@pytest.mark.parametrize("k", [0, 60, 100])
def test_k_outside_the_items_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} neighbours need more than {k} items"):
        neighbours.nearest(cloud(0), k)


def test_nan_is_refused() -> None:
    x = cloud(0)
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        neighbours.nearest(x, 3)


def test_duplicates_are_refused_and_counted() -> None:
    x = cloud(0)
    x[3] = x[10]
    with pytest.raises(ValueError, match="only 59 of 60 items differ"):
        neighbours.neighbourhood_overlap(x, cloud(1), 3)


def test_constant_layer_is_refused_by_name() -> None:
    x = torch.stack([cloud(0), torch.ones(60, 5, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"layer 1: .*no direction"):
        neighbours.layer_neighbours(x, 3)


def tree(points: np.ndarray, k: int) -> np.ndarray:
    """scikit-learn's neighbours, from differences in float64."""
    return NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(points).kneighbors(return_distance=False)


@pytest.mark.parametrize("name", HARD)
def test_neighbours_are_those_of_scikit_learn_s_tree(name: str) -> None:
    x = hard(name)
    assert np.array_equal(neighbours.nearest(x, 10).numpy(), tree(x.double().numpy(), 10))
    spread = normalize(StandardScaler().fit_transform(x.double().numpy()))
    assert np.array_equal(neighbours.layer_neighbours(x[None], 10)[0].numpy(), tree(spread, 10))


def test_distances_are_the_loop_and_an_item_is_never_near_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PAIRED_NUMBERS", 200)
    rows = torch.tensor([5, 0, 39])
    for name in ("0.1", "1e-7"):
        x = hard(name, n=40)
        found = neighbours.squared_distances(x, rows).sqrt()
        for line, i in zip(found, rows.tolist(), strict=True):
            differences = (x[i].double() - x.double()).norm(dim=-1).tolist()
            expected = [float("inf") if j == i else distance for j, distance in enumerate(differences)]
            assert line.tolist() == pytest.approx(expected, rel=1e-9)
