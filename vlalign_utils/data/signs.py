"""Signs: one written word in a picture, in a colour that says nothing about it.

Two inks per word are held out: training never shows the word in them, evaluation shows nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vlalign_utils.data.language import ITALIAN, Language, Question, question, word
from vlalign_utils.data.render import SIDE, background, finish, paint
from vlalign_utils.data.scenes import COLOURS, SHAPES, Split

LONGEST = 6  # letters that fit
SIZE = 14  # of the letters, in pixels
JITTER = 5  # pixels by which the word is off the middle, at most
WORDS = tuple(w for en in (*SHAPES, *COLOURS) for w in (en, ITALIAN[en]) if len(w) <= LONGEST)


@dataclass(frozen=True, slots=True)
class Sign:
    """A word as written, in whichever language, and its ink. `seed` fixes place, background and noise."""

    text: str
    ink: str
    seed: int
    split: Split


def held_out(text: str, ink: str) -> bool:
    """Whether no training sign shows this word in this ink (two inks in eight for a word)."""
    return (WORDS.index(text) + COLOURS.index(ink)) % 4 == 0


def signs(n: int, seed: int, split: Split) -> Iterator[Sign]:
    """Yield `n` signs. The same arguments always give the same signs."""
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    while n:
        text, ink = WORDS[rng.integers(len(WORDS))], COLOURS[rng.integers(len(COLOURS))]
        if held_out(text, ink) == (split == "test"):
            n -= 1
            yield Sign(text, ink, int(rng.integers(2**31)), split)


@cache
def _letters(text: str) -> Float[np.ndarray, "height width"]:
    font = ImageFont.load_default(size=SIZE)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), text, fill=255, font=font)
    return np.asarray(image, dtype=float) / 255


def box(sign: Sign) -> tuple[int, int, int, int]:
    """Where the word stands: left, top, right and bottom in pixels, right and bottom not included."""
    rng = np.random.default_rng([sign.seed, 1])
    height, width = _letters(sign.text).shape
    left, top = (
        int(np.clip((SIDE - side) // 2 + rng.integers(-JITTER, JITTER + 1), 0, SIDE - side))
        for side in (width, height)
    )
    return left, top, left + width, top + height


def render_sign(sign: Sign) -> UInt8[np.ndarray, "48 48 3"]:
    """The sign's picture; the same sign always gives the same pixels."""
    rng = np.random.default_rng(sign.seed)
    canvas = background(rng)
    left, top, right, bottom = box(sign)
    mask = np.zeros((SIDE, SIDE))
    mask[top:bottom, left:right] = _letters(sign.text)
    paint(canvas, mask, sign.ink, rng)
    return finish(canvas, rng)


def sign_caption(
    sign: Sign, language: Language, rng: np.random.Generator | None = None, mark: str = ""
) -> str:
    """The word as written, and its ink in the caption's language."""
    return f"{sign.text} in {word(sign.ink, language)}."


def ask_sign(sign: Sign, language: Language, rng: np.random.Generator) -> Question:
    """Ask which word is written: the answer is the word as it stands there."""
    asked = question("read", language, "", ())
    return Question("read", asked.text, sign.text, WORDS)
