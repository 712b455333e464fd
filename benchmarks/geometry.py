"""Geometry of all layers: shared over the grid, against a pair of layers at a time with scikit-learn.

Every way starts from the same states and standardises them itself. DADApy 0.3.4 needs numpy < 2, which this
environment cannot have: there is no row of it.
"""

import numpy as np
import skdim
import torch
from sklearn.metrics import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from benchmarks.sizes import Size
from benchmarks.timing import Row, compare, measure, ratio, show
from vlalign_utils.analysis.information_imbalance import imbalance_grid
from vlalign_utils.analysis.intrinsic_dimension import layer_distances, two_nn
from vlalign_utils.analysis.neighbours import overlap_grid
from vlalign_utils.analysis.prepared_layers import prepare

K = 10
ROUNDS = 2  # at most: at full size one takes minutes
PAIRS = 9  # pairs of layers that the loop is timed on, at most: each costs the same
LOOP = "scikit-learn and numpy, a pair at a time"
SHARED = "prepare, overlap_grid, imbalance_grid"


def rows(size: Size) -> list[Row]:
    """Overlap and both imbalances of every pair of layers, and TwoNN of every layer.

    Where there are more than PAIRS pairs, the loop is timed on PAIRS evenly spread ones, its seconds are
    scaled up to all, and its name says so. Raises AssertionError when results differ.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.cloud, generator=generator)
    y = x.flip(0) + torch.randn(size.cloud, generator=generator)
    layers, n, width = size.cloud
    there = x.to(size.device), y.to(size.device)
    cells = np.unique(np.linspace(0, layers**2 - 1, PAIRS, dtype=int))
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(cells, (layers, layers)), strict=True)]

    def loop() -> list[list[float]]:
        return [_pair(x[i].numpy(), y[j].numpy()) for i, j in pairs]

    # Neighbours at almost the same distance may swap places in single precision, which is timed. Means over
    # items are of float32 in any case: far below what a single rank is worth.
    if (difference := _apart(*there, pairs, torch.float64)) > 3e-8:
        raise AssertionError(f"the grids differ from the loop by {difference:.2g}")
    difference = _apart(*there, pairs, torch.float32)
    loop_name = LOOP + f", from {len(pairs)} of {layers**2} pairs" * (len(pairs) < layers**2)
    ways = {loop_name: loop, SHARED: lambda: _grids(*there)}
    seconds = measure(ways, min(size.rounds, ROUNDS))
    seconds[loop_name] = [s * layers**2 / len(pairs) for s in seconds[loop_name]]
    shape = f"{layers} layers, N = {n}, width {width}"
    task = f"overlap and imbalances of {layers} x {shape}"
    found = [ratio(task, SHARED, loop_name, seconds) | {"difference": difference}]
    show(found)
    dimensions = {
        "scikit-dimension": lambda: torch.tensor([_dimension(states.numpy()) for states in x]),
        "layer_distances, two_nn": lambda: torch.tensor([two_nn(r) for r in layer_distances(there[0], 2)]),
    }
    return found + compare(f"TwoNN of {shape}", dimensions, size.rounds)


def _grids(x: Tensor, y: Tensor) -> Tensor:
    """Mean overlap, Delta(x -> y) and Delta(y -> x) of every pair of layers."""
    a, b = prepare(x, K), prepare(y, K)
    found = overlap_grid(a.neighbours, b.neighbours), imbalance_grid(a, b), imbalance_grid(b, a)
    means = [grid.double().mean(dim=-1).cpu() for grid in found]
    return torch.stack([means[0], means[1], means[2].T])


def _apart(x: Tensor, y: Tensor, pairs: list[tuple[int, int]], dtype: torch.dtype) -> float:
    """Largest difference of any number of these pairs between both ways, relative to the largest number."""
    x, y = x.to(dtype), y.to(dtype)
    worst = largest = 0.0
    for i, j in pairs:
        shared = _grids(x[i : i + 1], y[j : j + 1]).flatten()
        expected = torch.tensor(_pair(x[i].cpu().numpy(), y[j].cpu().numpy()), dtype=torch.float64)
        worst = max(worst, float((shared - expected).abs().max()))
        largest = max(largest, float(expected.max()))
    return worst / largest


def _pair(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Mean overlap, Delta(x -> y) and Delta(y -> x) by cosine of standardised features."""
    sides = [normalize(StandardScaler().fit_transform(side)) for side in (x, y)]
    near = [NearestNeighbors(n_neighbors=K).fit(s).kneighbors(return_distance=False) for s in sides]
    overlap = (near[0][:, :, None] == near[1][:, None, :]).sum() / near[0].size
    return [overlap, _imbalance(near[0], sides[1]), _imbalance(near[1], sides[0])]


def _imbalance(near: np.ndarray, other: np.ndarray) -> float:
    distance = euclidean_distances(other)
    np.fill_diagonal(distance, np.inf)
    order = distance.argsort(axis=1)
    rank = (order == near[:, :1]).argmax(axis=1) + 1
    return 2 / len(near) * rank.mean()


def _dimension(states: np.ndarray) -> float:
    return skdim.id.TwoNN(discard_fraction=0.1).fit(StandardScaler().fit_transform(states)).dimension_
