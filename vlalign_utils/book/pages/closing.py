"""The end of a chapter that judges claims: what would change each verdict, from its intervals."""

import math
from collections.abc import Mapping

from scipy.stats import norm

from vlalign_utils.book.pages.markdown import text, true_minus
from vlalign_utils.evidence.claim_rules import Measured, Outcome, Verdict
from vlalign_utils.evidence.findings import joined

CHANCE = 0.8  # that the interval then lies where it is said, if the true value is the mean found here
FEW = 2  # significant digits of a number of items that is foretold
ABOUT = "about N ="  # before a number that is foretold
FAR = 100  # times as many items: more than anybody asks
HEADING = "## What would change the verdicts"
FORETOLD = (
    f"Each N would do with a probability of {CHANCE:g}, if what is found here on average is true. It is no "
    "guide where neighbours are sought among the items, as more of them change the measure itself."
)


def section(claims: Mapping[str, Verdict]) -> str:
    """A heading and a list with what would change each verdict, as Markdown; empty without claims.

    Items that are foretold suppose intervals that shrink with the root of N.
    """
    if not claims:
        return ""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, judged in claims.items():
        alike.setdefault((judged.word, _change(judged)), []).append(f"*{name}*")
    told = [f"- {joined(names)}, {word}: {text(true_minus(how))}" for (word, how), names in alike.items()]
    explained = [FORETOLD, ""] if any(ABOUT in how for _, how in alike) else []
    return "\n".join([HEADING, "", *explained, *told])


def _change(judged: Verdict) -> str:
    if judged.word == "not applicable":
        return f"a model that it can be asked of, or more scenes if this was close: {judged.decided_by}."
    if judged.decided_by not in judged.conditions:
        return f"{judged.decided_by}; until there are as many, no interval decides it."
    ways = {"supported": _supported, "contradicted": _contradicted, "equivalent": _equivalent}
    return f"{ways.get(judged.word, _undecided)(judged)}."


def _more(judged: Verdict) -> str:
    return "seeds or items" if judged.seeds > 1 else "items"


def _supported(judged: Verdict) -> str:
    kept = {name: _room(o) for name, o in judged.conditions.items()}
    nearest = min(kept, key=lambda name: kept[name])
    return (
        f"other {_more(judged)} for which one of its intervals reaches out of its region; nearest to that is "
        f"“{nearest}”, by {kept[nearest]:.2g}"
    )


def _contradicted(judged: Verdict) -> str:
    outside = {n: o for n, o in judged.conditions.items() if o.lies == "outside" and not o.guard}
    named = [
        f"“{name}” is {o.ends().replace(', ', ' and ')}, where its interval is {_missing(o):.2g} away"
        for name, o in outside.items()
    ]
    return f"other {_more(judged)} for which {joined(named)}; more of these will hardly do"


def _equivalent(judged: Verdict) -> str:
    outcome = judged.conditions[judged.decided_by]
    assert outcome.interval is not None
    less = f"a reason to care for less than {outcome.smallest:g} of “{judged.decided_by}”"
    if not outcome.interval.low <= outcome.end() <= outcome.interval.high:
        return f"{less}, for its interval lies on one side of {outcome.end():g}"
    return f"{less}: more {_more(judged)} would then have to tell on which side it lies"


def _undecided(judged: Verdict) -> str:
    """What each interval needs that is not where the claim needs it."""
    unmeasured = [f"“{name}”" for name, o in judged.conditions.items() if o.interval is None]
    parts = [f"a model on which {joined(unmeasured)} can be measured"] if unmeasured else []
    for name, outcome in judged.conditions.items():
        if outcome.interval is None or outcome.lies in ("inside", "equal"):
            continue
        if outcome.guard and not _within(outcome):
            parts.append(f"“{name}” would have to be {outcome.ends()}: what is measured does not work here")
        elif outcome.lies == "across":
            parts.append(f"“{name}” {_needed(outcome, outcome.interval, judged)}")
    return "; ".join(parts)


def _needed(outcome: Outcome, found: Measured, judged: Verdict) -> str:
    ends = [end for end in (outcome.above, outcome.below) if end is not None]
    if len(ends) > 1 or judged.seeds > 1:
        return "needs a narrower interval"
    (end,), below, above = ends, found.value - found.low, found.high - found.value
    # The side of the interval that lies across the end.
    needed = _items(found.n, judged.level, [(below if found.value > end else above, abs(found.value - end))])
    said = "inside" if _within(outcome) else "outside"
    told = f"would lie {said} its region with {ABOUT} {needed}" if needed else ""
    if outcome.smallest is not None:
        low, high = end - outcome.smallest, end + outcome.smallest
        alike = _items(found.n, judged.level, [(below, found.value - low), (above, high - found.value)])
        # Whichever comes first ends the question.
        if alike and (not needed or alike < needed):
            told = f"would be shown to be too small to matter with {ABOUT} {alike}"
    return told or "lies at the end of its region, and no usual number of items will tell"


def _items(n: int, level: float, sides: list[tuple[float, float]]) -> int | None:
    """About how many items shrink each side of an interval to its room, with a probability of CHANCE."""
    if min(room for _, room in sides) <= 0:
        return None
    quantile = float(norm.ppf((1 + level) / 2))
    times = max((side / room) ** 2 for side, room in sides) * (1 + float(norm.ppf(CHANCE)) / quantile) ** 2
    if times > FAR:
        return None
    step = 10 ** max(0, math.floor(math.log10(n * times)) + 1 - FEW)
    return math.ceil(n * times / step) * step


def _within(outcome: Outcome) -> bool:
    assert outcome.interval is not None
    above = outcome.above is None or outcome.interval.value > outcome.above
    return above and (outcome.below is None or outcome.interval.value < outcome.below)


def _room(outcome: Outcome) -> float:
    """How far the interval lies inside its region."""
    assert outcome.interval is not None
    above = math.inf if outcome.above is None else outcome.interval.low - outcome.above
    below = math.inf if outcome.below is None else outcome.below - outcome.interval.high
    return min(above, below)


def _missing(outcome: Outcome) -> float:
    """How far the interval lies outside its region."""
    assert outcome.interval is not None
    above = -math.inf if outcome.above is None else outcome.above - outcome.interval.high
    below = -math.inf if outcome.below is None else outcome.interval.low - outcome.below
    return max(above, below)
