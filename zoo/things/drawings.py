"""Drawings of emoji become cells: cropped to what is drawn, of one size, with clean transparent edges."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import resvg_py
from PIL import Image

CELL = 128  # pixels
MARGIN = 2  # pixels left free on each side of the longer extent
COLUMNS = 28
QUALITY = 80  # of the lossy WebP; alpha is kept without loss
RENDERED = 256  # pixels at which vector drawings are drawn before they are reduced


def _code(emoji: str) -> str:
    """Code points as packages write them, without variation selectors."""
    return "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")


def _plain(code: str) -> str:
    return code.lower().replace("-fe0f", "")


def vector_style(package: Path) -> Callable[[str], Image.Image]:
    """Function that draws an emoji from a package of SVG bodies (`icons.json`, `chars.json`)."""
    icons = json.loads((package / "icons.json").read_text())
    chars = json.loads((package / "chars.json").read_text())
    names = {_plain(code): name for code, name in chars.items()}

    def draw(emoji: str) -> Image.Image:
        name = names[_code(emoji)]
        name = icons["aliases"].get(name, {}).get("parent", name)
        icon = icons["icons"][name]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        return Image.open(
            io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, skip_system_fonts=True)))
        )

    return draw


def raster_style(package: Path) -> Callable[[str], Image.Image]:
    """Function that opens an emoji's image from a package of files named by code points."""

    paths = {_plain(path.stem): path for path in (package / "assets").iterdir()}

    def draw(emoji: str) -> Image.Image:
        return Image.open(paths[_code(emoji)])

    return draw


def cell(drawing: Image.Image) -> Image.Image:
    """Crop a drawing to its visible pixels and fit it into the middle of a cell."""
    drawing = drawing.convert("RGBA")
    box = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    if box is None:
        raise ValueError("a drawing has no visible pixel")
    drawing = drawing.crop(box)
    scale = (CELL - 2 * MARGIN) / max(drawing.size)
    width, height = (max(1, round(scale * side)) for side in drawing.size)
    drawing = drawing.resize((width, height), Image.Resampling.LANCZOS)
    fitted = Image.new("RGBA", (CELL, CELL))
    fitted.paste(drawing, ((CELL - width) // 2, (CELL - height) // 2))
    return fitted


def sheet(cells: Sequence[Image.Image]) -> Image.Image:
    """Lay cells out in rows of `COLUMNS`."""
    rows = -(-len(cells) // COLUMNS)
    image = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for i, one in enumerate(cells):
        image.paste(one, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    return image


def webp(image: Image.Image) -> bytes:
    """Encode a sheet."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, alpha_quality=100, method=4)
    return buffer.getvalue()
