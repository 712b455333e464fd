"""Findings in words: one sentence from an interval or a verdict, with its number, interval, N and null.

Nothing is judged here: which of its phrases a sentence takes follows from where the interval lies.
In a notebook: `report.finding(findings.verdict("bypass", report.claim("bypass", ...)))`.
"""

from collections.abc import Mapping

import pandas as pd

from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.claim_rules import Outcome, Verdict
from vlalign_utils.evidence.intervals import Interval


def shown(interval: Interval) -> str:
    """An interval with its N and a true minus: `−0.543 [−0.585, −0.500], N = 249`."""
    return f"{interval}, N = {interval.n}".replace("-", "−")


def compared(
    what: str, interval: Interval, null: float, above: str, below: str, neither: str, digits: int = 3
) -> str:
    """A sentence on one number against a null: `above`, `below` or `neither` says where its interval lies.

    `what` is a noun in the singular; in the phrases `{null}` stands for the null. An interval that touches
    the null lies on neither side, and so does a single number.
    """
    decided = interval.n > 1 and (interval.low > null or interval.high < null)
    phrase = (above if interval.low > null else below) if decided else neither
    number = f"{null:.{digits}f}".replace("-", "−")
    return sentence(f"{what} is {shown(interval)}: {phrase.format(null=number)}")


def against_chance(what: str, interval: Interval, chance: float, name: str = "chance") -> str:
    """A sentence on a score and what guessing gives."""
    sides = f"above {name} ({{null}})", f"below {name} ({{null}})", f"not told apart from {name} ({{null}})"
    return compared(what, interval, chance, *sides)


def depth(what: str, interval: Interval) -> str:
    """A sentence on a relative depth: whether its interval lies before, after or around the middle, 0.5."""
    sides = "behind the middle of the model", "before the middle of the model"
    return compared(what, interval, 0.5, *sides, "an interval that holds the middle of the model")


def verdict(name: str, judged: Verdict) -> str:
    """A sentence on a claim of claims.yml: its words, the verdict, and what decided it.

    Raises ClaimError for an unknown claim.
    """
    says = claim_rules.claim(name).says.rstrip(".")
    return sentence(f"“{says}” is {judged.word}: {reason(judged)}")


def several(says: str, judged: Mapping[str, Verdict]) -> str:
    """A sentence on claims that say the same of several things: the verdict of each, with what decided it.

    >>> from vlalign_utils.evidence.claim_rules import Verdict
    >>> none = Verdict(word="not applicable", decided_by="no phase", conditions={}, level=0.95, seeds=1)
    >>> several("An edit costs more inside", {"tokens frozen": none})
    '“An edit costs more inside” is not applicable for tokens frozen (no phase).'
    """
    told = [f"{one.word} for {name} ({_short(one)})" for name, one in judged.items()]
    return sentence(f"“{says}” is {joined(told)}")


def _short(judged: Verdict) -> str:
    outcome = judged.conditions.get(judged.decided_by)
    if outcome is None:
        return judged.decided_by
    guard = f"{judged.decided_by} " if outcome.guard else ""
    return f"{guard}{_cell(outcome)}"


def reason(judged: Verdict) -> str:
    """The reason of a verdict, as a clause: a condition with its interval and region, or too few seeds."""
    outcome = judged.conditions.get(judged.decided_by)
    if judged.word == "not applicable":
        return judged.decided_by
    if outcome is None:
        main = next(iter(judged.conditions))
        return f"{judged.decided_by}; {main} is {_cell(judged.conditions[main])}"
    if outcome.interval is None:
        return f"{judged.decided_by} could not be measured on this model"
    measured = f"{judged.decided_by} is {shown(Interval(**outcome.interval.model_dump()))}"
    needed = outcome.ends().replace(", ", " and ").replace("-", "−")
    if judged.word == "supported":
        others = len(judged.conditions) - 1
        several = f", and all {others} others hold"
        rest = {0: "", 1: ", and its other condition holds too"}.get(others, several)
        return f"{measured}, {needed} as it should be{rest}"
    if judged.word == "equivalent":
        return f"{measured}, less than the smallest effect of interest, {outcome.smallest:g}, on either side"
    if outcome.guard:
        return f"{measured}, not clearly {needed}, so that the measurement itself is not shown to work"
    if judged.word == "contradicted":
        return f"{measured}, where the claim needs it {needed}"
    return f"{measured}, not clearly {needed}"


def region(outcome: claim_rules.Condition) -> str:
    """Where a condition must lie, in words: `above 0.15 and below 0.75`."""
    return outcome.region().replace(", ", " and ").replace("-", "−")


def conditions(judged: Mapping[str, Verdict]) -> pd.DataFrame:
    """Every condition of some claims as rows to show: what decided a claim is marked."""
    rows = [
        (name, found.word, _name(what, found, outcome), _cell(outcome), region(outcome), outcome.lies)
        for name, found in judged.items()
        for what, outcome in found.conditions.items()
    ]
    level = next(iter(judged.values())).level if judged else 1.0
    columns = ["claim", "verdict", "condition", f"interval, {100 * level:.2f} %", "needed", "lies"]
    return pd.DataFrame(rows, columns=columns)


def _name(what: str, found: Verdict, outcome: Outcome) -> str:
    return f"{'guard: ' * outcome.guard}{what}{' (decides)' * (what == found.decided_by)}"


def _cell(outcome: Outcome) -> str:
    return shown(Interval(**outcome.interval.model_dump())) if outcome.interval else "not measurable"


def joined(words: list[str]) -> str:
    """Words as a list in a sentence: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun: `1 suite`, `3 suites`, `no suite`."""
    noun = one if number in (0, 1) else several or f"{one}s"
    return f"{number or 'no'} {noun}"


def sentence(clause: str) -> str:
    """A clause with a capital letter and a full stop."""
    return f"{clause[0].upper()}{clause[1:].rstrip('.')}."
