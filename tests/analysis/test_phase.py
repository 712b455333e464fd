import numpy as np
import pytest

from vlalign_utils.analysis.phase import Phase, by_region, common_width, locate


def curve(*means: float) -> np.ndarray:
    """Ten items whose mean is this curve."""
    noise = np.random.default_rng(0).standard_normal((10, len(means)))
    return np.array(means) + 0.001 * (noise - noise.mean(0))


def test_the_first_rise_is_found_and_not_the_one_at_the_end() -> None:
    assert locate(curve(0.1, 0.1, 0.3, 0.5, 0.48, 0.2, 0.1, 0.1, 0.3, 0.9)) == Phase(3, 4, 3)
    assert locate(curve(0.1, 0.1, 0.3, 0.5, 0.48, 0.2, 0.1, 0.1, 0.3, 0.9), before=1) == Phase(9, 9, 9)


def test_the_height_counts_from_the_start() -> None:
    # From 0.4: 0.5 is all of the rise, and 0.45 half of it.
    assert locate(curve(0.4, 0.45, 0.5, 0.45, 0.4, 0.4, 0.4)) == Phase(2, 2, 2)
    assert locate(curve(0.4, 0.45, 0.5, 0.45, 0.4, 0.4, 0.4), share=0.4) == Phase(1, 3, 2)


def test_a_model_that_only_loses_has_no_phase() -> None:
    assert locate(curve(0.5, 0.4, 0.3, 0.2, 0.1)) is None
    with pytest.raises(ValueError, match="before is 0, expected more than 0"):
        locate(curve(0.1, 0.2), before=0)


def test_regions_take_windows_that_lie_wholly_inside() -> None:
    phase = Phase(7, 11, 9)
    assert common_width(phase, 30) == 5
    windows = [(first, first + 4) for first in range(26)]
    found = by_region(phase, windows)
    assert [windows[i] for i in found["before"]] == [(0, 4), (1, 5), (2, 6)]
    assert [windows[i] for i in found["inside"]] == [(7, 11)]
    assert [windows[i] for i in found["after"]] == [(first, first + 4) for first in range(12, 26)]


def test_a_phase_at_the_edge_has_no_width_in_common() -> None:
    assert common_width(Phase(1, 8, 4), 8) == 0
