import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlalign_utils.interventions import band as bands
from vlalign_utils.interventions.band import PAPER, find_band, per_layer, shortest


def noisy(means: list[float], n: int = 200, sd: float = 0.3, seed: int = 0) -> np.ndarray:
    return np.array(means) + np.random.default_rng(seed).normal(0, sd, (n, len(means)))


def naive(weights: np.ndarray, share: float) -> tuple[int, int]:
    """Every band in a loop: shortest first, then the one that holds most, then the lowest."""
    for width in range(1, len(weights) + 1):
        sums = [(weights[a : a + width].sum(), a) for a in range(len(weights) - width + 1)]
        best = max(total for total, _ in sums)
        if best >= share - 1e-9:
            return next((a, a + width) for total, a in sums if total > best - 1e-9)
    raise AssertionError


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 8).map(float)),
    st.sampled_from([0.3, 0.5, 1.0]),
)
def test_shortest_is_what_a_loop_over_all_bands_finds(weights: np.ndarray, share: float) -> None:
    weights = weights + (weights.sum() == 0)
    weights = weights / weights.sum()
    assert tuple(shortest(weights[None], share)[0]) == naive(weights, share)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 8), st.integers(3, 5), st.integers(0, 100))
def test_a_planted_band_is_found(start: int, width: int, seed: int) -> None:
    means = [1.0 if start <= k < start + width else 0.02 for k in range(14)]
    found = find_band(noisy(means, seed=seed, sd=0.05), share=0.9, resamples=200)
    assert found.band == (start, start + width)
    assert found.settled
    assert (found.ends[0].low, found.ends[1].high) == (start, start + width)
    assert found.held == pytest.approx(width / (width + 0.02 * (14 - width)), abs=0.02)


@pytest.mark.parametrize("n_layers", [7, 8, 9, 32])
@pytest.mark.parametrize("sd", [0.0, 0.05])
def test_flat_importance_settles_nothing_and_says_so(n_layers: int, sd: float) -> None:
    found = find_band(noisy([1.0] * n_layers, sd=sd))
    assert found.ends[0].high - found.ends[0].low >= n_layers // 3
    assert not found.settled
    assert "NOT settled" in str(found)


def test_importance_that_vanishes_in_resamples_settles_nothing() -> None:
    assert not find_band(noisy([0.001] * 8, n=20, sd=1.0)).settled


def test_ends_of_resamples_are_those_of_a_loop() -> None:
    values = noisy([0.0, 0.3, 1.0, 0.8, 0.1, -0.5], n=40, sd=0.6)
    found = find_band(values, resamples=50, seed=3)
    means = bands.resampled_means(values, 3, 50)
    clipped = [np.clip(row, 0, None) / np.clip(row, 0, None).sum() for row in means]
    assert [tuple(band) for band in found.resampled] == [naive(row, 0.5) for row in clipped]
    low, high = np.quantile([naive(row, 0.5)[0] for row in clipped], [0.025, 0.975])
    assert found.ends[0][1:3] == (low, high)


def test_windows_are_shared_out_to_their_layers() -> None:
    values = np.array([[1.0, 2.0, 4.0]])
    assert per_layer(values, [(0, 1), (1, 2), (2, 3)])[0].tolist() == [1.0, 1.5, 3.0, 4.0]
    single = noisy([0, 1, 1, 0], sd=0.01)
    assert find_band(single, windows=[(k, k) for k in range(4)]).band == find_band(single).band


def test_alignment_counts_above_its_ends() -> None:
    tilted = np.array([[0.1, 0.2, 0.9, 0.4, 0.5]])
    assert bands.above_ends(tilted)[0] == pytest.approx([0, 0, 0.6, 0, 0])
    importance = np.array([[1.0, 1, 0, 0, 0, 0, 0, 0]] * 9)
    plateau = noisy([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1], n=60, sd=0.01)
    assert find_band(importance).band == (0, 1)
    # Half of the weight is in each: the band must reach from one to the other to hold most of both.
    assert find_band(importance, plateau, share=0.9).band == (0, 6)


def test_comparison_with_the_papers_bands() -> None:
    assert [round(x, 2) for band in PAPER.values() for x in band] == [0.19, 0.5, 0.22, 0.69]
    found = find_band(noisy([0, 0, 1, 1, 1, 1, 0, 0], sd=0.001), share=1.0)
    assert found.band[0] <= 2
    exact = find_band(np.array([[0.0, 0, 1, 1, 1, 1, 0, 0]] * 5), share=1.0)
    assert exact.band == (2, 6)
    assert [end.value for end in exact.depth] == [0.25, 0.75]
    assert exact.iou((0.25, 0.75))[:3] == (1.0, 1.0, 1.0)
    assert exact.iou((0.5, 1.0)).value == pytest.approx(1 / 3)
    assert exact.shared((0.5, 1.0)).value == pytest.approx(1 / 2)
    assert exact.iou((0.75, 1.0)).value == 0
    with pytest.raises(ValueError, match="0 <= start < stop <= 1, got 6 to 16"):
        exact.iou((6, 16))


def test_what_cannot_hold_a_band_is_refused() -> None:
    values = noisy([0, 1, 0])
    with pytest.raises(ValueError, match="importance is positive in no layer"):
        find_band(-np.ones((3, 4)))
    with pytest.raises(ValueError, match="share is 0, expected more than 0"):
        find_band(values, share=0)
    with pytest.raises(ValueError, match="alignment has 4 layers, importance has 3"):
        find_band(values, noisy([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="3 points but 1 windows"):
        find_band(values, windows=[(0, 1)])
    with pytest.raises(ValueError, match="no window holds layer 1"):
        find_band(values, windows=[(0, 0), (2, 2), (3, 3)])
    with pytest.raises(ValueError, match="no items"):
        find_band(np.zeros((0, 4)))
