"""Scores that the last stage of a chain should reach on held-out items, and whether it does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlalign_utils.data.suites import SUITES
from vlalign_utils.evidence.crossed import crossed_mean
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.zoo.scores_file import ChainScores, of_seeds

TEXT = 0.9
SEEING = 0.6  # each vision-centric suite
MEAN = 0.8  # their mean

VISION_CENTRIC = tuple(name for name, suite in SUITES.items() if suite.vision_centric)


def bar(suite: str) -> float | None:
    """The accuracy a suite of the drawn world should reach; None where it only has to be above chance."""
    return TEXT if suite == "text" else SEEING if suite in VISION_CENTRIC else None


def mean_of_seeing(values: Mapping[str, float]) -> float:
    """Mean accuracy over the vision-centric suites of the drawn world."""
    return sum(values[name] for name in VISION_CENTRIC) / len(VISION_CENTRIC)


@dataclass(frozen=True)
class Bar:
    """The least lenient score of the last stage on a suite of the things, or on one of its groups.

    With `beside` it is the least difference from the score of that stage. `tower` is the question of the
    tower's own scores that says how much of this the tower sees at all.
    """

    suite: str
    least: float
    group: str | None = None
    beside: str | None = None
    tower: str | None = None

    def reached(self, found: Interval) -> bool:
        """Whether a mean score is no lower than the bar; its interval may be."""
        return found.value >= self.least


THINGS = (
    Bar("naming", 0.80, "trained styles"),
    Bar("naming", 0.70, "held-out style", tower="name, trained things"),
    Bar("unseen", 0.45, tower="kind, held-out things"),
    Bar("existence", 0.85),
    Bar("counting", 0.75),
    Bar("relations", 0.80),
    Bar("digits", 0.85),
    Bar("kind", 0.60, "never asked"),
    Bar("text", -0.05, beside="base"),
)


def measured(chains: Sequence[ChainScores], stage: str, asked: Bar) -> Interval | None:
    """The score of a stage that a bar is about, over chains that differ in their seed, which count as crossed
    with the items; None where one of them has not been scored.
    """
    own = of_seeds(chains, stage, asked.suite, asked.group)
    if own is None or asked.beside is None:
        return None if own is None else crossed_mean(own)
    other = of_seeds(chains, asked.beside, asked.suite, asked.group)
    return None if other is None else crossed_mean(own - other, bounds=(-1.0, 1.0))
