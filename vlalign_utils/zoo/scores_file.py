"""Scores of a chain, item by item, kept beside its stages with what they are scores of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, ValidationError

from vlalign_utils.evidence.results import ResultsError, tidy_json
from vlalign_utils.evidence.strict import Strict
from vlalign_utils.paths import write_atomic

FILE = "scores.json"
CURVE = "curve.json"  # of the last stage after parts of its training: its stages are numbers of images
STRICT, LENIENT = "strict", "lenient"
Packed = str | list[float]  # a digit for each item where all are right or wrong, else its score


class SuiteItems(Strict):
    """Items of a suite: how they are scored, their groups, and the mean score of the best blind rule.

    `group` is the place in `groups` of each item that is in one of them; `chance` holds that of each group.
    """

    metric: str
    n: int = Field(ge=1)
    chance: float
    groups: dict[str, float] = Field(default_factory=dict)
    group: list[int] = Field(default_factory=list)

    def rows(self, group: str | None = None) -> Int[np.ndarray, " items"]:
        """Places of the items of a group, or of all."""
        if group is None:
            return np.arange(self.n)
        return np.flatnonzero(np.array(self.group) == list(self.groups).index(group))


class StageScores(Strict):
    """Scores of one stage on one suite; `inputs` is the hash of all that decides them."""

    inputs: str
    seconds: int
    strict: Packed
    lenient: Packed


class ChainScores(Strict):
    """Scores of every stage of a chain on every suite of a world; `dtype` is the precision of the models."""

    chain: str
    world: str
    dtype: str
    suites: dict[str, SuiteItems] = Field(default_factory=dict)
    stages: dict[str, dict[str, StageScores]] = Field(default_factory=dict)

    def current(self, stage: str, suite: str, inputs: str) -> bool:
        """Whether these scores are on record, and for these inputs."""
        kept = self.stages.get(stage, {}).get(suite)
        return kept is not None and kept.inputs == inputs

    def of(
        self, stage: str, suite: str, group: str | None = None, rules: str = LENIENT
    ) -> Float[np.ndarray, " items"] | None:
        """Score of each item of a suite or one of its groups, by either rules; None where not scored."""
        kept = self.stages.get(stage, {}).get(suite)
        if kept is None:
            return None
        return unpacked(kept.strict if rules == STRICT else kept.lenient)[self.suites[suite].rows(group)]

    def chance(self, suite: str, group: str | None = None) -> float:
        """Mean score of the best blind rule on a suite or a group of it."""
        items = self.suites[suite]
        return items.chance if group is None else items.groups[group]

    def noted(self, stage: str, suite: str, items: SuiteItems, scores: StageScores) -> "ChainScores":
        """These scores with those of one stage on one suite, in place of any before."""
        stages = {name: dict(kept) for name, kept in self.stages.items()}
        stages.setdefault(stage, {})[suite] = scores
        return self.model_copy(update={"suites": self.suites | {suite: items}, "stages": stages})


def packed(scores: Float[np.ndarray, " items"]) -> Packed:
    """Scores as text of 0 and 1, or rounded where an item may be half right.

    >>> packed(np.array([1.0, 0.0])), packed(np.array([0.25, 1.0]))
    ('10', [0.25, 1.0])
    """
    if np.isin(scores, (0, 1)).all():
        return "".join(str(int(score)) for score in scores)
    return [round(float(score), 4) for score in scores]


def unpacked(kept: Packed) -> Float[np.ndarray, " items"]:
    """Scores as `packed` was given them."""
    return np.array([float(score) for score in kept])


def read_scores(path: Path) -> ChainScores | None:
    """The scores of a chain, or None where there are none. Raises ResultsError naming file and field."""
    if not path.is_file():
        return None
    try:
        return ChainScores.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ResultsError(
            f"{path} is no file of scores: {field}: {first['msg']}; restore it from git, or delete it and "
            "run make zoo again"
        ) from None


def write_scores(path: Path, scores: ChainScores) -> None:
    """Write the file, whole or not at all."""
    write_atomic(path, tidy_json(scores.model_dump()))


def of_seeds(
    chains: Sequence[ChainScores], stage: str, suite: str, group: str | None = None, rules: str = LENIENT
) -> Float[np.ndarray, "seeds items"] | None:
    """Scores of one stage of chains that differ in their seed, on the same items; None where one has none.

    Raises ResultsError when they were asked different items.
    """
    found = [scores.of(stage, suite, group, rules) for scores in chains]
    known = [scores for scores in found if scores is not None]
    if not known or len(known) < len(found):
        return None
    asked = {(scores.suites[suite].n, tuple(scores.suites[suite].group)) for scores in chains}
    if len(asked) > 1:
        names = ", ".join(scores.chain for scores in chains)
        raise ResultsError(f"{names} were asked different items of {suite}: run make zoo for each")
    return np.stack(known)
