"""Draw scenes: 48 x 48 pictures with uneven background, pixel noise, jitter and real handwriting."""

import math
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from vlalign_utils.data.scenes import COLUMNS, DIGITS, ROWS, Scene, Split, Thing

SIDE = 48  # pixels
CELL = SIDE // 2
OVERSAMPLE = 4
RADIUS = {"small": 7.5, "large": 11.0}  # pixels
JITTER = 2.5  # pixels by which a thing is off its quadrant's centre, at most
DIGIT_TEST_SHARE = 0.3

RGB = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (130, 40, 170),
    "orange": (245, 140, 20),
    "white": (245, 245, 245),
    "pink": (250, 150, 200),
}


@cache
def digit_items(split: Split) -> dict[int, Float[np.ndarray, "items 8 8"]]:
    """scikit-learn's handwritten digits by value, in [0, 1]; the splits share no item."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    cut = round(DIGIT_TEST_SHARE * len(order))
    chosen = order[:cut] if split == "test" else order[cut:]
    return {v: data.images[chosen[data.target[chosen] == v]] / 16.0 for v in range(10)}


def render(scene: Scene) -> UInt8[np.ndarray, "48 48 3"]:
    """The scene's picture; the same scene always gives the same pixels."""
    return _drawn(scene)[0]


def coverage(scene: Scene) -> Float[np.ndarray, "things 48 48"]:
    """How far each thing covers each pixel of the scene's picture, 0 to 1."""
    return np.stack(_drawn(scene)[1])


def _drawn(scene: Scene) -> tuple[UInt8[np.ndarray, "48 48 3"], list[Float[np.ndarray, "48 48"]]]:
    rng = np.random.default_rng(scene.seed)
    canvas, masks = background(rng), []
    for thing in scene.things:
        radius = RADIUS[thing.size] * rng.uniform(0.9, 1.1)
        free = max(0.0, min(JITTER, CELL / 2 - radius))
        centre = np.array([COLUMNS.index(thing.column), ROWS.index(thing.row)]) * CELL + CELL / 2
        centre = centre + rng.uniform(-free, free, 2)
        mask = (
            _handwriting(DIGITS.index(thing.form), scene.split, centre, radius, rng)
            if thing.is_digit
            else _outline(thing, centre, radius, rng)
        )
        paint(canvas, mask, thing.colour, rng)
        masks.append(mask)
    return finish(canvas, rng), masks


def render_digit(value: int, item: int, split: Split, seed: int) -> UInt8[np.ndarray, "48 48 3"]:
    """One handwritten digit alone, in near-white: item `item` (taken modulo the number there are)."""
    rng = np.random.default_rng(seed)
    canvas = background(rng)
    centre = SIDE / 2 + rng.uniform(-4, 4, 2)
    mask = _handwriting(value, split, centre, 18 * rng.uniform(0.85, 1.1), rng, item)
    paint(canvas, mask, "white", rng)
    return finish(canvas, rng)


def background(rng: np.random.Generator) -> Float[np.ndarray, "48 48 3"]:
    """A dark ground, unevenly lit."""
    level = rng.uniform(15, 75, 3) * 0.4 + rng.uniform(15, 75) * 0.6
    ramp = np.linspace(-1, 1, SIDE)
    slope = rng.uniform(-15, 15, 2)
    return level + (slope[0] * ramp[:, None] + slope[1] * ramp[None, :])[..., None]


def paint(
    canvas: Float[np.ndarray, "48 48 3"],
    mask: Float[np.ndarray, "48 48"],
    colour: str,
    rng: np.random.Generator,
) -> None:
    """Cover the canvas where the mask is 1 with a tint of the colour."""
    tint = np.clip(np.array(RGB[colour]) + rng.normal(0, 9, 3), 0, 255)
    canvas += mask[..., None] * (tint - canvas)


def finish(canvas: Float[np.ndarray, "48 48 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "48 48 3"]:
    """Add the noise of the pixels."""
    return np.clip(canvas + rng.normal(0, 6, canvas.shape), 0, 255).astype(np.uint8)


def _outline(
    thing: Thing, centre: Float[np.ndarray, "2"], radius: float, rng: np.random.Generator
) -> Float[np.ndarray, "48 48"]:
    image = Image.new("L", (SIDE * OVERSAMPLE, SIDE * OVERSAMPLE))
    draw = ImageDraw.Draw(image)
    x, y = (float(c) * OVERSAMPLE for c in centre)
    r = radius * OVERSAMPLE
    turn = math.radians(rng.uniform(-8, 8))
    if thing.form == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif thing.form == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        draw.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=0)
    else:
        draw.polygon([_turned(px, py, turn, x, y, r) for px, py in _POLYGONS[thing.form]], fill=255)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float) / 255


def _turned(px: float, py: float, turn: float, x: float, y: float, r: float) -> tuple[float, float]:
    c, s = math.cos(turn), math.sin(turn)
    return x + r * (c * px - s * py), y + r * (s * px + c * py)


def _star() -> list[tuple[float, float]]:
    radii, angles = (1.0, 0.42), [math.pi * i / 5 - math.pi / 2 for i in range(10)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [(float(a) / 16.5, float(b) / 16.5) for a, b in zip(x, y, strict=True)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "cross": [
        *[(-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3)],
        *[(0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3)],
    ],
    "star": _star(),
    "heart": _heart(),
}


def _handwriting(
    value: int,
    split: Split,
    centre: Float[np.ndarray, "2"],
    radius: float,
    rng: np.random.Generator,
    item: int | None = None,
) -> Float[np.ndarray, "48 48"]:
    items = digit_items(split)[value]
    # The choice is drawn even when the item is given, so that both cases use the generator alike.
    drawn = int(rng.integers(len(items)))
    glyph = Image.fromarray(np.uint8(255 * items[drawn if item is None else item % len(items)]))
    glyph = glyph.resize((64, 64), Image.Resampling.BICUBIC).rotate(
        rng.uniform(-10, 10), Image.Resampling.BILINEAR
    )
    scale = 64 / (2 * radius * rng.uniform(0.95, 1.1))
    x, y = centre
    placed = glyph.transform(
        (SIDE, SIDE),
        Image.Transform.AFFINE,
        (scale, 0, 32 - scale * x, 0, scale, 32 - scale * y),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(placed, dtype=float) / 255
