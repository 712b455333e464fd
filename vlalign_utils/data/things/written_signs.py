"""Signs: a short word written on a board, at any size; what is asked is to read it.

Held out from training: a third of the inks of every word, and one typeface.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vlalign_utils.data.items import Split

# None of them names a thing that is held out.
LIST = """
stop exit open closed sale cafe bar shop road station left right north south east west up down in out
push pull hot cold wet dry slow fast new old free full empty yes no one two ten red blue green black
white water fruit sugar soup sea lake river hill farm garden home table map game music film news mail
police danger quiet please thanks hello welcome today summer winter monday friday gold lunch dinner menu
price rent help start finish play work week year zero best good sweet fresh large small private public
office market street museum airport
"""
WORDS = tuple(LIST.split())
INKS = {
    "black": (25, 25, 25),
    "red": (190, 30, 30),
    "blue": (35, 60, 180),
    "green": (20, 120, 50),
    "brown": (110, 65, 30),
    "purple": (110, 30, 140),
}
TYPEFACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono-Bold")
HELD_OUT_TYPEFACE = "DejaVuSerif-Bold"


@dataclass(frozen=True, slots=True)
class WrittenSign:
    """A word, its ink and its typeface. `seed` fixes place, board and background."""

    word: str
    ink: str
    typeface: str
    seed: int


def held_out(word: str, ink: str) -> bool:
    """Whether no training sign shows this word in this ink (two inks in six for a word)."""
    return (WORDS.index(word) + list(INKS).index(ink)) % 3 == 0


def written_signs(n: int, seed: int, split: Split) -> Iterator[WrittenSign]:
    """Yield `n` signs. The same arguments always give the same signs."""
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    typefaces = TYPEFACES if split == "train" else (HELD_OUT_TYPEFACE,)
    while n:
        word, ink = WORDS[rng.integers(len(WORDS))], list(INKS)[rng.integers(len(INKS))]
        if held_out(word, ink) == (split == "test"):
            n -= 1
            yield WrittenSign(word, ink, typefaces[rng.integers(len(typefaces))], int(rng.integers(2**31)))


@cache
def typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A typeface that comes with matplotlib, in pixels."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def draw_sign(sign: WrittenSign, side: int) -> tuple[UInt8[np.ndarray, "side side 3"], tuple[float, ...]]:
    """The sign's image, and the board's box: left, top, right and bottom as shares of the side."""
    rng = np.random.default_rng(sign.seed)
    image = Image.new("RGB", (side, side), tuple(int(c) for c in rng.integers(120, 240, 3)))
    board = tuple(int(c) for c in rng.integers(225, 256, 3))
    wide = rng.uniform(0.6, 0.92) * side
    size = 8
    while size < 0.4 * side and typeface(sign.typeface, size + 1).getlength(sign.word) < 0.88 * wide:
        size += 1
    font = typeface(sign.typeface, size)
    left, top, right, bottom = font.getbbox(sign.word)
    height = (bottom - top) * rng.uniform(1.6, 2.4)
    x, y = rng.uniform(0.02 * side, 0.98 * side - wide), rng.uniform(0.02 * side, 0.98 * side - height)
    draw = ImageDraw.Draw(image)
    frame = INKS[sign.ink] if rng.random() < 0.5 else board
    draw.rounded_rectangle(
        (x, y, x + wide, y + height), side * 0.03, board, frame, max(1, round(side * 0.012))
    )
    at = (x + (wide - (right - left)) / 2 - left, y + (height - (bottom - top)) / 2 - top)
    draw.text(at, sign.word, INKS[sign.ink], font)
    return np.asarray(image), (x / side, y / side, (x + wide) / side, (y + height) / side)
