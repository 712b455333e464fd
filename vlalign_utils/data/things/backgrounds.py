"""Backgrounds of scenes: plain, gradient, horizon, soft texture and stripes, the same at every size."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Pattern = Literal["plain", "gradient", "horizon", "texture", "stripes"]
Colour = tuple[int, int, int]

GRAIN = 10  # cells along each side of a soft texture
GRAIN_STRENGTH = 60.0  # levels of a channel by which it varies at most


@dataclass(frozen=True, slots=True)
class Background:
    """A pattern of two colours. `turn` is its direction in radians; `place` where it changes, 0 to 1, or,
    for stripes, how many there are.
    """

    pattern: Pattern
    colours: tuple[Colour, Colour]
    turn: float
    place: float


def draw_background(rng: np.random.Generator) -> Background:
    """Draw a background: a random pattern, with two colours that are not too unlike for stripes."""
    pattern: Pattern = get_args(Pattern)[rng.integers(len(get_args(Pattern)))]
    first = rng.uniform(40, 255, 3)
    second, place = rng.uniform(40, 255, 3), rng.uniform(0.35, 0.75)
    if pattern == "stripes":
        second, place = np.clip(first + rng.uniform(-70, 70, 3), 0, 255), rng.uniform(3, 9)
    turn = rng.uniform(0, np.pi)
    return Background(pattern, (_colour(first), _colour(second)), round(turn, 4), round(place, 4))


def paint_background(background: Background, side: int, seed: int) -> UInt8[np.ndarray, "side side 3"]:
    """Paint a background on an image of `side` pixels; `seed` fixes a soft texture's grain."""
    first, second = (np.array(colour, np.float32) for colour in background.colours)
    if background.pattern == "plain":
        return np.broadcast_to(first.astype(np.uint8), (side, side, 3)).copy()
    if background.pattern == "texture":
        grain = np.random.default_rng(seed).uniform(-1, 1, (GRAIN, GRAIN, 3)) * GRAIN_STRENGTH / 2
        coarse = Image.fromarray(np.clip(first + grain, 0, 255).astype(np.uint8))
        return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).copy()
    share = _share(background, side)[..., None]
    return (first + share * (second - first) + 0.5).astype(np.uint8)


def _share(background: Background, side: int) -> Float[np.ndarray, "side side"]:
    """How far each pixel has the second colour, 0 to 1; edges are as wide as a pixel."""
    middle = (np.arange(side, dtype=np.float32) + 0.5) / side
    if background.pattern == "horizon":
        row = np.clip((middle - background.place) * side + 0.5, 0, 1)
        return np.repeat(row[:, None], side, 1)
    cosine, sine = np.cos(background.turn, dtype=np.float32), np.sin(background.turn, dtype=np.float32)
    along = (middle[None, :] - 0.5) * cosine + (middle[:, None] - 0.5) * sine
    if background.pattern == "gradient":
        return np.clip(along / np.float32(np.sqrt(2)) + 0.5, 0, 1)
    period = side / background.place  # pixels of a pair of stripes
    phase = np.abs((along * background.place) % 1 - 0.5) * 2  # from 1 in the first stripe to 0
    return np.clip((0.5 - phase) * period / 2 + 0.5, 0, 1)


def _colour(levels: Float[np.ndarray, "3"]) -> Colour:
    red, green, blue = (int(level) for level in levels)
    return red, green, blue
