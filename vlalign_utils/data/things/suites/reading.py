"""Suite `reading`: the word on a sign, in inks and a typeface that training does not show."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.suites.about import Asked, illustrated
from vlalign_utils.data.things.written_questions import ask_sign
from vlalign_utils.data.things.written_signs import WORDS, written_signs


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask which word is written."""
    for sign in written_signs(n, int(rng.integers(2**31)), split):
        yield Asked(sign, ask_sign(sign, rng), WORDS, guess=1 / len(WORDS), group="word")


SUITE = Suite(
    name="reading",
    mirrors="TextVQA",
    asks="which word is written on a sign",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
)
