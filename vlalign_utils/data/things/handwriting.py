"""Real handwriting: a digit of scikit-learn's on a sheet, at any size. Its splits share no item."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vlalign_utils.data.items import Split
from vlalign_utils.data.render import digit_items

LARGE = 80  # pixels to which the 8 x 8 items, with a margin, are brought before they are turned
SHARES = (0.45, 0.9)  # of the side of an image that a digit with its margin takes


@dataclass(frozen=True, slots=True)
class WrittenDigit:
    """A digit's value and which item of the split it is. `seed` fixes place, turn, sheet and ink."""

    value: int
    item: int
    split: Split
    seed: int


def written_digits(n: int, seed: int, split: Split) -> Iterator[WrittenDigit]:
    """Yield `n` digits. The same arguments always give the same digits."""
    rng = np.random.default_rng([seed, 10])
    items = digit_items(split)
    for _ in range(n):
        value = int(rng.integers(10))
        yield WrittenDigit(value, int(rng.integers(len(items[value]))), split, int(rng.integers(2**31)))


@dataclass(frozen=True, slots=True)
class Page:
    """How a digit is written: turn in degrees, side and corner in pixels, colours, in chalk or in ink."""

    turn: float
    size: int
    corner: tuple[int, int]
    sheet: Int[np.ndarray, "3"]
    ink: Int[np.ndarray, "3"]
    chalk: bool


def page(digit: WrittenDigit, side: int) -> Page:
    """What the digit's seed draws for an image of `side` pixels."""
    rng = np.random.default_rng(digit.seed)
    turn = rng.uniform(-10, 10)
    size = round(rng.uniform(*SHARES) * side)
    x, y = (int(v) for v in rng.integers(0, side - size + 1, 2))
    sheet, ink = rng.integers(195, 256, 3), rng.integers(0, 90, 3)
    chalk = bool(rng.random() < 0.25)
    return Page(turn, size, (x, y), ink if chalk else sheet, sheet if chalk else ink, chalk)


def draw_digit(digit: WrittenDigit, side: int) -> tuple[UInt8[np.ndarray, "side side 3"], tuple[float, ...]]:
    """The digit's image, and its box: left, top, right and bottom as shares of the side."""
    look = page(digit, side)
    strokes = Image.fromarray(np.uint8(255 * np.pad(digit_items(digit.split)[digit.value][digit.item], 1)))
    strokes = strokes.resize((LARGE, LARGE), Image.Resampling.BICUBIC)
    strokes = strokes.rotate(look.turn, Image.Resampling.BILINEAR)
    (x, y), size = look.corner, look.size
    mask = Image.new("L", (side, side))
    mask.paste(strokes.resize((size, size), Image.Resampling.BICUBIC), (x, y))
    covered = np.asarray(mask, dtype=np.float32)[..., None] / 255
    pixels = look.sheet + covered * (look.ink.astype(np.float32) - look.sheet)
    box = (x / side, y / side, (x + size) / side, (y + size) / side)
    return pixels.round().astype(np.uint8), box
