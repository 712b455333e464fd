"""From per-item values to a verdict: intervals at the level that claims are decided at, and the rule.

In a notebook: `report.claim("bypass", {"loss in the middle minus early": claims.interval(gap, seed), ...})`.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int
from pydantic import ValidationError
from scipy.stats import norm, t

from vlalign_utils.evidence.claim_rules import (
    Claim,
    ClaimError,
    Condition,
    Lies,
    Measured,
    Outcome,
    Verdict,
    Word,
    level,
)
from vlalign_utils.evidence.crossed import crossed_mean
from vlalign_utils.evidence.intervals import Interval, resampled_means, rng

RESAMPLES = 12_000  # at eleven claims 27 of them lie beyond either end of an interval


def halves(n: int, seed: int = 0) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Item numbers in two random halves: choose a band or a window on the first, test it on the second.

    Raises ValueError for fewer than two items.
    """
    if n < 2:
        raise ValueError(f"{n} items cannot be halved into one to choose on and one to test on")
    order = rng(seed, "halves").permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def interval(
    values: Float[np.ndarray, "*seeds items"], seed: int = 0, confidence: float | None = None
) -> Interval:
    """Mean over items, and over seeds where the values have a row for each, with its interval.

    `confidence` is the interval's level, by default `level()`, at which claims are decided.

    One seed: the bootstrap of `of_curve` over items. Several: seeds and items as crossed factors, as
    `crossed_mean` has them. For a paired comparison pass `a - b`.
    Raises ValueError when there is a single value, or one is not finite.
    """
    table = np.atleast_2d(values)
    if table.ndim > 2 or table.size < 2:
        raise ValueError(f"values of shape {values.shape} have no interval; pass [items] or [seeds, items]")
    at = level() if confidence is None else confidence
    seeds, items = table.shape
    if items == 1:
        mean, error = float(table.mean()), float(table.std(ddof=1)) / np.sqrt(seeds)
        spread = float(t.ppf((1 + at) / 2, seeds - 1) * error)
        return Interval(mean, mean - spread, mean + spread, seeds)
    if seeds > 1:
        return crossed_mean(table, at, (-np.inf, np.inf))
    return of_curve(table[0][:, None], lambda means: means[:, 0], seed, at)


def ratio(
    above: Float[np.ndarray, "*seeds items"],
    below: Float[np.ndarray, "*seeds items"],
    seed: int = 0,
    confidence: float | None = None,
) -> Interval | None:
    """Ratio of two means over the same items (and seeds), with its interval, by default at `level()`.

    None when the interval of the lower mean is not above 0: the ratio then means nothing.
    The interval is that of the ratio's linear part per item, (a - r b) / mean(b) (the delta method).
    """
    if interval(below, seed, confidence).low <= 0:
        return None
    mean = below.mean()
    r = above.mean() / mean
    return interval(r + (above - r * below) / mean, seed, confidence)


def peak(values: Float[np.ndarray, "items points"], seed: int = 0) -> Interval:
    """Relative depth, 0 at the first point and 1 at the last, of the largest mean, with its interval.

    The first of several equal maxima counts.
    """
    last = values.shape[1] - 1
    return of_curve(values, lambda means: means.argmax(axis=1) / last, seed)


def of_curve(
    values: Float[np.ndarray, "items points"],
    statistic: Callable[[Float[np.ndarray, "draws points"]], Float[np.ndarray, " draws"]],
    seed: int = 0,
    confidence: float | None = None,
) -> Interval:
    """Any statistic of mean curves (one row each), with its percentile bootstrap interval.

    `confidence` is the interval's level, by default `level()`, at which claims are decided.

    To compare two curves paired by item, join them along their points. A bootstrap of few items is too
    narrow: its percentiles are moved out by sqrt(n / (n - 1)) and from the normal's quantile to Student's.
    Source: Hesterberg 2015, The American Statistician 69: 371-386 (expanded percentiles).
    Raises ValueError for fewer than two items or a value that is not finite.
    """
    n, at = len(values), level() if confidence is None else confidence
    if n < 2:
        raise ValueError(f"an interval needs at least two items, not {n}")
    tail = float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - at) / 2, n - 1)))
    drawn = statistic(resampled_means(values, seed, RESAMPLES))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    observed = float(statistic(values.mean(axis=0, dtype=np.float64)[None])[0])
    return Interval(observed, float(low), float(high), n)


def judge(
    claim: Claim,
    intervals: Mapping[str, Interval | None],
    seeds: int = 1,
    not_applicable: str | None = None,
) -> Verdict:
    """The verdict on a claim, by the rule at the head of claims.yml.

    Args:
        claim: with its conditions.
        intervals: one entry per condition, None where it could not be measured; may be empty where the claim
            does not apply.
        seeds: that training was repeated from.
        not_applicable: the reason why the claim cannot be asked of this model, such as no abstraction phase.

    Only strict inequalities count: an interval that touches its boundary decides nothing. Equivalence is
    shown by two one-sided tests at once (Schuirmann 1987): the interval lies within `smallest` of the end.
    Raises ClaimError for a condition that is missing or unknown, or an interval that is not finite.
    """
    if not_applicable and not intervals:
        intervals = dict.fromkeys(claim.conditions)
    for what, names in {
        "misses": claim.conditions.keys() - intervals.keys(),
        "does not have": intervals.keys() - claim.conditions.keys(),
    }.items():
        if names:
            raise ClaimError(f"claim '{claim.id}' {what} {sorted(names)}; it has: {list(claim.conditions)}")
    found = {name: _outcome(claim, name, intervals[name]) for name in claim.conditions}
    short = f"too few seeds ({seeds} of {claim.seeds})" if seeds < claim.seeds else None
    no_guard = next((name for name, o in found.items() if o.guard and o.lies != "inside"), None)
    outside = next((name for name, o in found.items() if o.lies == "outside"), None)
    equal = next((name for name, o in found.items() if o.lies == "equal"), None)
    unclear = next((name for name, o in found.items() if o.lies != "inside"), None)
    if why := not_applicable:
        word: Word = "not applicable"
    elif why := short or no_guard:
        word = "undecided"
    elif why := outside:
        word = "contradicted"
    elif why := equal:
        word = "equivalent"
    elif why := unclear:
        word = "undecided"
    else:
        word, why = "supported", next(iter(found))
    return Verdict(word=word, decided_by=why, conditions=found, level=level(), seeds=seeds)


def _outcome(claim: Claim, name: str, interval: Interval | None) -> Outcome:
    condition = claim.conditions[name]
    region = condition.model_dump()
    if interval is None:
        return Outcome(**region, interval=None, lies="nowhere")
    try:
        measured = Measured(**interval._asdict())
    except ValidationError as error:
        first = error.errors()[0]
        raise ClaimError(f"claim '{claim.id}': {name}: {first['loc'][0]}: {first['msg']}") from None
    above = -float("inf") if condition.above is None else condition.above
    below = float("inf") if condition.below is None else condition.below
    if _equal(condition, measured):
        lies: Lies = "equal"
    elif measured.high < above or measured.low > below:
        lies = "outside"
    elif above < measured.low and measured.high < below:
        lies = "inside"
    else:
        lies = "across"
    return Outcome(**region, interval=measured, lies=lies)


def _equal(condition: Condition, measured: Measured) -> bool:
    if condition.smallest is None:
        return False
    end, room = condition.end(), condition.smallest
    return end - room < measured.low and measured.high < end + room
