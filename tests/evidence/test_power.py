import numpy as np
import pytest
from scipy import stats

from vlalign_utils.evidence.intervals import rng
from vlalign_utils.evidence.power import equivalence_power, items_for, power

LEVEL = 0.99


def drawn(n: int, mean: float, sd: float = 0.4, repeats: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Ends of t intervals of repeated experiments."""
    values = rng(0, f"{n} {mean}").normal(mean, sd, (repeats, n))
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(axis=1, ddof=1) / np.sqrt(n)
    return values.mean(axis=1) - half, values.mean(axis=1) + half


@pytest.mark.parametrize(("n", "effect"), [(20, 0.3), (100, 0.1), (100, 0.15)])
def test_power_is_the_share_of_experiments_that_find_the_effect(n: int, effect: float) -> None:
    low, _ = drawn(n, effect)
    assert power(0.4, n, effect, LEVEL) == pytest.approx((low > 0).mean(), abs=0.02)
    assert power(0.4, n, -effect, LEVEL) == power(0.4, n, effect, LEVEL)


@pytest.mark.parametrize(("n", "effect"), [(100, 0.0), (150, 0.0), (150, 0.05)])
def test_equivalence_is_the_share_of_experiments_that_show_it(n: int, effect: float) -> None:
    low, high = drawn(n, effect)
    inside = ((low > -0.15) & (high < 0.15)).mean()
    assert equivalence_power(0.4, n, 0.15, LEVEL, effect) == pytest.approx(inside, abs=0.03)
    assert equivalence_power(0.4, 10, 0.15, LEVEL) == 0  # no interval is so narrow


def test_the_fewest_items_are_the_fewest() -> None:
    n = items_for(0.4, 0.05, LEVEL, 0.9)
    assert power(0.4, n, 0.05, LEVEL) >= 0.9 > power(0.4, n - 1, 0.05, LEVEL)


def test_what_has_no_power_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a positive standard deviation, two items"):
        power(0.0, 100, 0.1, LEVEL)
    with pytest.raises(ValueError, match="no number of items finds an effect of 0 with"):
        items_for(0.4, 0.0, LEVEL)
