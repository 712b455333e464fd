import numpy as np
import pytest

from vlalign_utils.analysis.phase import Phase, common_width, locate, regions, search


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


def test_regions_are_covered_by_windows_of_one_width() -> None:
    found = regions(Phase(7, 10, 9), 30)
    assert found == {
        "before": [(0, 3), (3, 6)],
        "inside": [(7, 10)],
        "behind": [(11, 14), (15, 18), (18, 21), (22, 25), (26, 29)],
    }
    for name, (first, last) in {"before": (0, 6), "inside": (7, 10), "behind": (11, 29)}.items():
        assert {k for a, b in found[name] for k in range(a, b + 1)} == set(range(first, last + 1))


def test_a_phase_at_the_edge_has_no_width_in_common() -> None:
    assert common_width(Phase(1, 8, 4), 8) == 0
    with pytest.raises(ValueError, match="no layer of 8 lies on both sides"):
        regions(Phase(1, 8, 4), 8)


def items(*means: float) -> np.ndarray:
    """Two hundred noisy items around a curve."""
    return np.array(means) + np.random.default_rng(1).normal(0, 0.2, (200, len(means)))


def test_a_phase_passes_on_the_items_that_did_not_choose_it() -> None:
    found = search(items(0.1, 0.1, 0.4, 0.5, 0.48, 0.2, 0.1, 0.1, 0.1), seed=2)
    assert found.phase is not None
    assert found.phase[:2] == (2, 4) or found.phase[:2] == (3, 4)
    assert list(found.tests)[:2] == ["above bags of words", "above that of layer 0"]
    assert not found.missing()
    assert found.told().startswith("texts that say the same in other words are alike in layers ")
    assert found.told().endswith("N = 100")


@pytest.mark.parametrize(
    ("means", "why"),
    [
        ((0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), "the overlap above that of layer"),  # noise alone has a top
        ((-0.4, -0.2, -0.1, -0.1, -0.2, -0.4, -0.4), "the overlap above bags of words is"),
        ((0.1, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5), "the overlap above that of layer 5 is"),  # it does not fall
        ((0.1, 0.5, 0.6), "stay alike up to the last layer"),
        ((0.5, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0), "never more alike than as means of their words"),
    ],
)
def test_what_is_no_phase_is_told(means: tuple[float, ...], why: str) -> None:
    found = search(items(*means), seed=2)
    assert found.phase is None
    assert why in found.missing()
    assert found.told() == f"there is no abstraction phase: {found.missing()}"
