"""What a number of items can decide: power of a paired comparison, stated before it is made."""

import math

from scipy.stats import nct, norm, t


def power(sd: float, n: int, effect: float, level: float) -> float:
    """Probability that the interval of a mean of `n` values excludes 0 on the side of a true effect.

    Args:
        sd: standard deviation of the values over items, from a pilot on other items.
        n: items.
        effect: the true mean, such as the smallest effect of interest.
        level: of the two-sided interval, such as `claim_rules.level()`.

    From the noncentral t distribution. Raises ValueError for a standard deviation that is not positive, fewer
    than two items, or a level outside (0, 1).

    >>> round(power(sd=0.4, n=500, effect=0.05, level=0.95), 2)
    0.8
    """
    _check(sd, n, level)
    bound = t.ppf((1 + level) / 2, n - 1)
    return float(nct.sf(bound, n - 1, abs(effect) * math.sqrt(n) / sd))


def equivalence_power(sd: float, n: int, smallest: float, level: float, effect: float = 0.0) -> float:
    """Probability that the interval lies within `smallest` of 0 on both sides, for a true mean of `effect`.

    Normal approximation. Raises ValueError as `power` does.

    >>> round(equivalence_power(sd=0.4, n=1000, smallest=0.05, level=0.95), 2)
    0.95
    """
    _check(sd, n, level)
    error = sd / math.sqrt(n)
    room = smallest - t.ppf((1 + level) / 2, n - 1) * error
    if room <= 0:
        return 0.0
    return float(norm.cdf((room - effect) / error) - norm.cdf((-room - effect) / error))


def items_for(sd: float, effect: float, level: float, wanted: float = 0.8) -> int:
    """Fewest items with which `power` is at least `wanted`.

    >>> items_for(sd=0.4, effect=0.05, level=0.95)
    505
    """
    _check(sd, 2, level)
    if effect == 0 or not 0 < wanted < 1:
        raise ValueError(f"no number of items finds an effect of {effect:g} with a power of {wanted:g}")
    low, high = 1, 2
    while power(sd, high, effect, level) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(sd, middle, effect, level) >= wanted else (middle, high)
    return high


def _check(sd: float, n: int, level: float) -> None:
    if not (sd > 0 and n >= 2 and 0 < level < 1):
        needed = "power needs a positive standard deviation, two items and a level in (0, 1)"
        raise ValueError(f"{needed}; got {sd:g}, {n} and {level:g}")
