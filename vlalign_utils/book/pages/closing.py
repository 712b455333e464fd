"""The end of a chapter that judges claims: what would change each verdict, from its intervals."""

import math
from collections.abc import Mapping

from vlalign_utils.book.pages.markdown import text
from vlalign_utils.evidence.claim_rules import Measured, Outcome, Verdict
from vlalign_utils.evidence.findings import joined, sentence

HEADING = "## What would change the verdicts"
FEW = 2  # significant digits of a number of items that is foretold
FAR = 100  # times as many items: more than anybody asks


def section(claims: Mapping[str, Verdict]) -> str:
    """A heading and a list with what would change each verdict, as Markdown; empty without claims.

    Numbers of items suppose that means stay where they are and intervals shrink with the root of N.
    """
    if not claims:
        return ""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, judged in claims.items():
        alike.setdefault((judged.word, _change(judged).replace("-", "−")), []).append(f"*{name}*")
    told = [f"- {joined(names)}, {word}: {text(change)}" for (word, change), names in alike.items()]
    return "\n".join([HEADING, "", *told])


def _change(judged: Verdict) -> str:
    if judged.word == "not applicable":
        return sentence(f"another model, for {judged.decided_by}")
    if judged.decided_by not in judged.conditions:
        return sentence(f"{judged.decided_by}; until there are as many, no interval decides it")
    ways = {"supported": _supported, "contradicted": _contradicted, "equivalent": _equivalent}
    return sentence(ways.get(judged.word, _undecided)(judged))


def _supported(judged: Verdict) -> str:
    kept = {name: _room(o) for name, o in judged.conditions.items() if o.interval is not None}
    nearest = min(kept, key=lambda name: kept[name])
    return (
        "other items on which one of its intervals reaches out of its region; nearest to that is "
        f"“{nearest}”, by {kept[nearest]:.3f}"
    )


def _contradicted(judged: Verdict) -> str:
    outcome = judged.conditions[judged.decided_by]
    assert outcome.interval is not None
    return (
        f"items on which “{judged.decided_by}” is {outcome.ends().replace(', ', ' and ')}; its interval is "
        f"{-_room(outcome, into=True):.3f} away from there, so that more of these items will hardly do"
    )


def _equivalent(judged: Verdict) -> str:
    outcome = judged.conditions[judged.decided_by]
    return (
        f"a reason to care for less than {outcome.smallest:g} of “{judged.decided_by}”: more items "
        "would then have to tell on which side it lies"
    )


def _undecided(judged: Verdict) -> str:
    """What each interval that lies across the end of its region needs."""
    parts = []
    for name, outcome in judged.conditions.items():
        if outcome.interval is None:
            parts.append(f"“{name}” would have to be measurable on this model")
        elif outcome.lies == "across":
            parts.append(_needed(name, outcome, outcome.interval, judged.seeds))
        elif outcome.guard and outcome.lies == "outside":
            parts.append(f"“{name}” would have to be {outcome.ends()}: what is measured does not work here")
    return "; ".join(parts)


def _needed(name: str, outcome: Outcome, found: Measured, seeds: int) -> str:
    ends = [end for end in (outcome.above, outcome.below) if end is not None]
    if len(ends) > 1 or seeds > 1:
        more = "more seeds or items" if seeds > 1 else "more items"
        return f"“{name}” needs a narrower interval, by {more}"
    (end,) = ends
    name = f"“{name}”"
    half, away = (found.high - found.low) / 2, abs(found.value - end)
    to_a_side, word = _items(found.n, half, away), "inside" if _within(outcome, found.value) else "outside"
    said = f"{name} would lie {word} its region with about N = {to_a_side}" if to_a_side else ""
    if outcome.smallest is not None:
        alike = _items(found.n, half, outcome.smallest - away)
        # Whichever comes first ends the question.
        if alike and (not to_a_side or alike < to_a_side):
            said = f"{name} would be shown to be too small to matter with about N = {alike}"
    return said or f"{name} lies at the end of its region, and no usual number of items will tell"


def _items(n: int, half: float, room: float) -> int | None:
    """About how many items make an interval of this half-width as narrow as the room there is."""
    if room <= 0 or (half / room) ** 2 > FAR:
        return None
    needed = n * (half / room) ** 2
    step = 10 ** max(0, math.floor(math.log10(needed)) + 1 - FEW)
    return math.ceil(needed / step) * step


def _within(outcome: Outcome, value: float) -> bool:
    above = outcome.above is None or value > outcome.above
    return above and (outcome.below is None or value < outcome.below)


def _room(outcome: Outcome, into: bool = False) -> float:
    """How far the interval lies inside its region; with `into`, how far it must go to get in, below 0."""
    assert outcome.interval is not None
    low, high = outcome.interval.low, outcome.interval.high
    if into:
        low, high = high, low
    above = math.inf if outcome.above is None else low - outcome.above
    below = math.inf if outcome.below is None else outcome.below - high
    return min(above, below)
