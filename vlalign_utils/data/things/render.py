"""Render scenes of things at any size: each drawing is scaled once, straight to its final size."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vlalign_utils.data.things.backgrounds import paint_background
from vlalign_utils.data.things.scenes import Placed, Scene
from vlalign_utils.data.things.sheets import cell

SIDES = (96, 448)  # pixels: the smallest and the largest image


def render(scene: Scene, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Image of a scene, `side` pixels wide and high; the same arguments always give the same pixels.

    Raises ValueError for a side out of `SIDES`, and when a sheet is missing or damaged.

    >>> import numpy as np
    >>> from vlalign_utils.data.things.scenes import draw_scene
    >>> scene = draw_scene(np.random.default_rng(0), "test", 2)
    >>> render(scene, 160).shape
    (160, 160, 3)
    """
    _check(side)
    image = Image.fromarray(paint_background(scene.background, side, scene.seed))
    for placed in scene.placed:
        drawing, corner = _drawing(placed, side)
        image.paste(drawing, corner, drawing)
    return np.asarray(image)


def coverage(scene: Scene, side: int) -> Float[np.ndarray, "drawings side side"]:
    """How far each drawing of the scene shows at each pixel, 0 to 1; later ones hide earlier ones.

    Raises ValueError as `render` does.
    """
    _check(side)
    masks = np.zeros((len(scene.placed), side, side), np.float32)
    for i, placed in enumerate(scene.placed):
        drawing, corner = _drawing(placed, side)
        mask = Image.new("L", (side, side))
        mask.paste(drawing.getchannel("A"), corner)
        masks[i] = np.asarray(mask, np.float32) / 255
        masks[:i] *= 1 - masks[i]
    return masks


def _drawing(placed: Placed, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The drawing at its final size, and its top left corner in pixels."""
    drawing = cell(placed.index, placed.style)
    if placed.mirrored:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    extent = max(1, round(placed.size * side))
    drawing = drawing.resize((extent, extent), Image.Resampling.LANCZOS)
    return drawing, (round(placed.x * side - extent / 2), round(placed.y * side - extent / 2))


def _check(side: int) -> None:
    if not SIDES[0] <= side <= SIDES[1]:
        raise ValueError(f"side is {side}; scenes of things are rendered at {SIDES[0]} to {SIDES[1]} pixels")
