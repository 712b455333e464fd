"""Suite `counting`: how often a thing is there, among others."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import ask_number
from vlalign_utils.data.things.scenes import MOST, draw_repeated
from vlalign_utils.data.things.suites.about import Asked, illustrated
from vlalign_utils.data.things.words import NUMBERS, capital

CHOICES = tuple(capital(number) for number in NUMBERS[1:])


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask how many there are of one to four."""
    for _ in range(n):
        number = int(rng.integers(1, len(CHOICES) + 1))
        # A single thing has company, so that its number is not that of all things.
        others = int(rng.integers(1 if number == 1 else 0, MOST["quadrants"] - number + 1))
        scene = draw_repeated(rng, split, number, others)
        first, *rest = dict.fromkeys(scene.things)
        while any(overlap(first, other) for other in rest):  # is a taxi to be counted as a car?
            scene = draw_repeated(rng, split, number, others)
            first, *rest = dict.fromkeys(scene.things)
        yield Asked(scene, ask_number(first, number, rng), CHOICES, guess=1 / len(CHOICES), group="number")


SUITE = Suite(
    name="counting",
    mirrors="CV-Bench",
    asks="how many there are of a thing, one to four",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
)
