"""claims.yml, checked: what is claimed, the regions that decide it, and what a verdict holds."""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.evidence.strict import Strict
from vlalign_utils.evidence.yaml_files import YamlError, load_yaml
from vlalign_utils.paths import NOTEBOOK, ROOT

FILE = "book/claims.yml"
ERROR_RATE = 0.05  # of all claims on one architecture together
Word = Literal["supported", "contradicted", "equivalent", "undecided", "not applicable"]
WORDS: tuple[Word, ...] = get_args(Word)
Lies = Literal["inside", "outside", "equal", "across", "nowhere"]
Text = Annotated[str, Field(min_length=1)]
Key = Annotated[str, Field(pattern=r"^[\w:.-]+$")]


class ClaimError(ValueError):
    """claims.yml is wrong, or a verdict was asked for that it does not allow."""


class Condition(Strict):
    """The region that an interval must lie in. A guard says that the measurement works at all.

    `smallest` is the smallest effect of interest, for a region with one end: an interval that lies nearer to
    that end than this, on both sides, shows that there is no difference to speak of.
    """

    above: FiniteFloat | None = None
    below: FiniteFloat | None = None
    smallest: Annotated[FiniteFloat, Field(gt=0)] | None = None
    guard: bool = False

    @model_validator(mode="after")
    def _region(self) -> "Condition":
        if self.above is None and self.below is None:
            raise ValueError("a condition needs `above`, `below` or both")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"the region is empty: above {self.above} and below {self.below}")
        if self.smallest is not None and (self.guard or None not in (self.above, self.below)):
            raise ValueError("`smallest` goes with one of `above` and `below`, and not with a guard")
        return self

    def end(self) -> float:
        """The one end of a region with `smallest`."""
        return next(end for end in (self.above, self.below) if end is not None)

    def ends(self) -> str:
        """The ends of the region in words: `above 0.15, below 0.75`."""
        named = {"above": self.above, "below": self.below}
        return ", ".join(f"{side} {end:g}" for side, end in named.items() if end is not None)

    def region(self) -> str:
        """The region in words, with the smallest effect: `above 0, of interest from 0.05 on`."""
        return (
            self.ends() if self.smallest is None else f"{self.ends()}, of interest from {self.smallest:g} on"
        )


class Claim(Strict):
    """One claim: its sentence and source, its statistic and null, and the conditions that decide it."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]
    says: Text
    source: Literal["paper", "follow-up"]
    references: list[Key] = Field(default_factory=list)  # of book/references.bib
    works: str = ""  # where it comes from, when that has no key
    statistic: Text
    formula: Annotated[str, Field(pattern=r"^[^$`]+$")]
    against: Text  # its null (a bare `null` would be YAML for nothing)
    depth: Text
    seeds: int = Field(default=1, ge=1)
    conditions: dict[str, Condition]
    chapter: Annotated[str, Field(pattern=NOTEBOOK)]
    heading: Text

    @model_validator(mode="after")
    def _whole(self) -> "Claim":
        if not (self.references or self.works):
            raise ValueError("a claim names its source in `references` or `works`")
        if next((c.guard for c in self.conditions.values()), True):
            raise ValueError("the first condition is the main one: it must exist, and not be a guard")
        return self


class Measured(Strict):
    """An interval as it is stored."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    n: int = Field(ge=1)


class Outcome(Condition):
    """A condition, the interval that was found (None: it could not be measured), and where it lies."""

    interval: Measured | None
    lies: Lies

    def __str__(self) -> str:
        """In words: the interval, its N, and where it lies."""
        if self.interval is None:
            return f"not measurable ({self.region()})"
        shown = Interval(**self.interval.model_dump())
        return f"{shown}, N = {shown.n}: {self.lies} ({self.region()})"


class Verdict(Strict):
    """The word, what decided it (a condition, or a reason in words), and every condition's outcome."""

    word: Word
    decided_by: str
    conditions: dict[str, Outcome]
    level: FiniteFloat
    seeds: int = Field(ge=1)

    def intervals(self) -> dict[str, Interval | None]:
        """Intervals by condition, None for what was not measured."""
        found = {name: outcome.interval for name, outcome in self.conditions.items()}
        return {name: Interval(**one.model_dump()) if one else None for name, one in found.items()}

    def __str__(self) -> str:
        """In lines: the word, then every condition."""
        lines = [f"{self.word}, by {self.decided_by}"]
        lines += [f"  {'guard, ' * o.guard}{name}: {o}" for name, o in self.conditions.items()]
        return "\n".join([*lines, f"  intervals at {100 * self.level:.2f} %, seeds: {self.seeds}"])


@cache
def load(path: Path = ROOT / FILE) -> dict[str, Claim]:
    """All claims by id, in the file's order. Raises ClaimError naming the claim and the field at fault."""
    try:
        data = load_yaml(path)
    except YamlError as error:
        raise ClaimError(str(error)) from None
    entries = data.get("claims") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ClaimError(f"{path} must hold a mapping 'claims' with at least one claim")
    found = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ClaimError(f"{path}: the claim '{name}' must be a mapping")
        try:
            found[name] = Claim.model_validate({**entry, "id": name})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in (name, *first["loc"]))
            raise ClaimError(f"{path}: {field}: {first['msg']}") from None
    return found


def claim(name: str) -> Claim:
    """The claim with this id. Raises ClaimError naming the nearest one."""
    known = load()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(known)}"
        raise ClaimError(f"no claim '{name}' in {FILE}; {hint}")
    return known[name]


def level(claims: int | None = None) -> float:
    """Level of every interval that decides a claim: 0.95 after Bonferroni's correction for all claims."""
    return 1 - ERROR_RATE / (len(load()) if claims is None else claims)
