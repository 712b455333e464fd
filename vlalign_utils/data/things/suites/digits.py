"""Suite `digits`: real handwriting, of items that no training image shows."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.render import digit_items
from vlalign_utils.data.things.handwriting import WrittenDigit
from vlalign_utils.data.things.suites.about import Asked, illustrated
from vlalign_utils.data.things.written_questions import ask_digit

VALUES = tuple(str(value) for value in range(10))


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask which digit is written: all values in turn, and of each all handwriting before any comes again."""
    items = digit_items(split)
    start = int(rng.integers(10_000))
    for i in range(start, start + n):
        value = i % len(VALUES)
        item = i // len(VALUES) % len(items[value])
        digit = WrittenDigit(value, item, split, int(rng.integers(2**31)))
        yield Asked(digit, ask_digit(digit, rng), VALUES, guess=1 / len(VALUES), group="digit")


SUITE = Suite(
    name="digits",
    mirrors="MNIST",
    asks="which handwritten digit is shown",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
)
