import numpy as np
import pytest
from scipy.stats import spearmanr

from vlalign_utils.analysis.agreement import Profile, agreement, as_table, told

RNG = np.random.default_rng(0)
DEPTH = np.linspace(0, 1, 9)


def noisy(curve: np.ndarray, n: int = 60, sd: float = 0.1) -> Profile:
    return Profile(curve + RNG.normal(0, sd, (n, len(curve))), np.linspace(0, 1, len(curve)))


def test_the_correlation_is_scipys_on_the_means() -> None:
    one, other = noisy(np.sin(3 * DEPTH)), noisy(np.cos(5 * DEPTH))
    (found,) = agreement({"one": one, "other": other}, 8)
    expected = spearmanr(one.values.mean(0)[:8], other.values.mean(0)[:8]).statistic
    assert found.rho.value == pytest.approx(expected)
    assert found.rho.low <= found.rho.value <= found.rho.high
    assert found.rho.n == 60


def test_profiles_on_other_depths_are_interpolated() -> None:
    centres = np.array([0.1, 0.35, 0.6, 0.85])
    windows = Profile(np.tile(centres, (20, 1)), centres)  # rises with depth
    (found,) = agreement({"points": noisy(DEPTH, sd=0.001), "windows": windows}, 8)
    assert found.rho.value > 0.97


def test_noise_widens_the_interval_and_luck_is_told() -> None:
    clear, vague = (
        agreement({"one": noisy(DEPTH, sd=sd), "other": noisy(DEPTH, sd=sd)}, 8)[0] for sd in (0.05, 3.0)
    )
    assert np.diff([clear.rho.low, clear.rho.high]) < np.diff([vague.rho.low, vague.rho.high])
    assert clear.rho.low > clear.shifted > 0


def test_what_has_no_order_is_refused() -> None:
    flat = Profile(np.ones((5, 9)), DEPTH)
    with pytest.raises(ValueError, match="'flat' is the same at all depths"):
        agreement({"flat": flat, "rise": noisy(DEPTH)}, 8)
    with pytest.raises(ValueError, match="over 3 layers have no order"):
        agreement({"rise": noisy(DEPTH), "fall": noisy(-DEPTH)}, 3)


def test_every_two_are_a_row() -> None:
    found = agreement({name: noisy(DEPTH) for name in "abc"}, 8)
    table = as_table(found)
    assert list(zip(table.one, table.other, strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert (table.shifted < 1).all()


def test_all_comparisons_are_told_in_a_sentence() -> None:
    profiles = {"rise": noisy(DEPTH), "same": noisy(DEPTH), "fall": noisy(-DEPTH)}
    found = told(agreement(profiles, 8))
    assert found.startswith("Of 3 pairs of profiles over depth 1 agree and 2 are opposed, beyond luck; most ")
    assert "“fall”" in found
    assert found.endswith("N = 60.")
