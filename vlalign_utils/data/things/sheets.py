"""Drawings of the things: one sheet of cells for each style, read when a style is first used."""

import hashlib
import io
from functools import cache

from PIL import Image

from vlalign_utils.data.things.table import FOLDER, layout, things

STYLES = ("google", "fluent3d", "fluentflat", "twitter")


def cell(index: int, style: str) -> Image.Image:
    """Drawing of thing `index` in a style: RGBA, as large as the table's layout says.

    Raises ValueError for an unknown style or thing, and when the style's sheet is missing or damaged.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; expected one of {', '.join(STYLES)}")
    if not 0 <= index < len(things()):
        raise ValueError(f"there is no thing {index}; things are numbered from 0 to {len(things()) - 1}")
    side, columns = layout().cell, layout().columns
    x, y = index % columns * side, index // columns * side
    return _sheet(style).crop((x, y, x + side, y + side))


@cache
def _sheet(style: str) -> Image.Image:
    path = FOLDER / f"{style}.webp"
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): restore it from git") from error
    if hashlib.sha256(encoded).hexdigest() != layout().sha256.get(style):
        raise ValueError(f"{path} is not the sheet that things.json describes: restore it from git")
    return Image.open(io.BytesIO(encoded)).convert("RGBA")
