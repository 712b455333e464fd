import numpy as np
import pytest

from vlalign_utils.analysis import plateau


def naive(curve, chance, share):
    top = int(np.argmax(curve))
    least = share * (curve[top] - chance)
    first = last = top
    while curve[top] > chance and first > 0 and curve[first - 1] - chance >= least:
        first -= 1
    while curve[top] > chance and last + 1 < len(curve) and curve[last + 1] - chance >= least:
        last += 1
    return first, last - first + 1


def test_the_run_around_the_highest_layer_is_found():
    curves = np.random.default_rng(0).random((200, 9))
    for share in (0.5, 0.8, 1.0):
        found = plateau.span(curves, 0.1, share)
        expected = [naive(curve, 0.1, share) for curve in curves]
        assert [(int(a), int(b)) for a, b in zip(*found, strict=True)] == expected


def test_a_curve_below_chance_has_a_plateau_of_one_layer():
    first, width = plateau.span(np.array([[0.1, 0.3, 0.2]]), chance=0.5)
    assert (first[0], width[0]) == (1, 1)


def test_a_planted_plateau_has_its_height_and_is_wider_by_its_layers():
    wide, narrow = np.array([0.1, 0.5, 0.5, 0.5, 0.1]), np.array([0.1, 0.1, 0.5, 0.1, 0.1])
    assert plateau.height(np.tile(wide, (7, 1)), 0.1) == pytest.approx(0.5)
    both = np.concatenate([wide, narrow])[None]
    assert plateau.wider(both, 0.1) == pytest.approx(0.5)  # two layers of four


def test_a_width_is_that_of_the_lines_between_layers():
    curves = np.random.default_rng(1).random((50, 9))
    fine = np.linspace(0, 8, 80_001)
    for curve, found in zip(curves, plateau.width(curves, 0.1), strict=True):
        line, top = np.interp(fine, np.arange(9), curve), 10_000 * int(curve.argmax())
        below = np.flatnonzero(line < 0.1 + plateau.SHARE * (curve.max() - 0.1))
        left = below[below < top].max(initial=-1) + 1
        right = below[below > top].min(initial=len(fine)) - 1
        assert found == pytest.approx((right - left) / 80_000, abs=1e-4)
    assert plateau.width(np.array([[0.1, 0.3, 0.2]]), chance=0.5) == 0


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="share is 0, expected more than 0"):
        plateau.span(np.ones((1, 3)), 0.0, 0.0)
