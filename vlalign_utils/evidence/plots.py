"""One look for all figures: the same colour, line and marker for the same thing everywhere.

Colours differ in lightness as well as in hue, and lines also in dash and marker, so figures survive grey
print and colour blindness. The background is opaque and light: figures read the same on a dark page.
"""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL.Image import Dither, Image, Quantize
from PIL.Image import open as open_image
from PIL.PngImagePlugin import PngInfo

from vlalign_utils.evidence.figure_text import describe
from vlalign_utils.evidence.intervals import Band, Interval

BACKGROUND = "#fbfbf8"
INK = "#222222"
MUTED = "#6b6b6b"  # nulls, chance and footers
DESCRIPTION = "Description"  # the PNG keyword for what an image shows


class Look(NamedTuple):
    """How one thing is drawn."""

    colour: str
    dash: str | tuple[int, tuple[int, ...]]
    marker: str


STAGES = {
    "base": Look("#b08a3c", ":", "o"),
    "aligned": Look("#1b7fb5", "--", "s"),
    "tuned": Look("#4b1d6b", "-", "^"),
}
MODALITIES = {"image": Look("#d1610f", "-", "o"), "text": Look("#14386e", "--", "s")}
# For things that have no palette of their own, in order.
OTHERS = (
    Look("#14386e", "-", "o"),
    Look("#d1610f", "--", "s"),
    Look("#1f8a70", "-.", "^"),
    Look("#8a2f5c", ":", "D"),
    Look("#8f8f2e", (0, (5, 1, 1, 1)), "v"),
    Look("#5b5b5b", (0, (1, 1)), "P"),
)
FILLINGS = ("full", "none", "left")  # of a marker, one after another

STYLE: dict[str, Any] = {
    "figure.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "savefig.bbox": "tight",
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.facecolor": BACKGROUND,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "svg.hashsalt": "vlalign",  # the same figure is the same file
    "image.cmap": "cividis",  # even in lightness, and the same to the colour blind
}


def figure(
    columns: int = 1, rows: int = 1, height: float = 3.4, width: float | None = None
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the project's style; `height` in inches per row, `width` per column.

    Axes come row by row.
    """
    plt.style.use(STYLE)
    across = width or {1: 5.4, 2: 4.8}.get(columns, 3.6)
    fig, axes = plt.subplots(rows, columns, figsize=(across * columns, height * rows), squeeze=False)
    _small_pages()
    return fig, list(axes.flat)


def palette_png(fig: Figure) -> bytes:
    """The figure as a PNG of 255 colours: a third of the size, and drawings need no more.

    What it shows, in words, is written into the file (`DESCRIPTION`), for the pages' alternative text.
    """
    full, small = BytesIO(), BytesIO()
    fig.savefig(full, format="png")
    drawing = open_image(full).convert("RGB")
    few = drawing.quantize(255, method=Quantize.MEDIANCUT, dither=Dither.NONE)
    words = PngInfo()
    words.add_itxt(DESCRIPTION, describe(fig))
    few.save(small, "PNG", optimize=True, pnginfo=words)
    return small.getvalue()


def _small_pages() -> None:
    """Make notebooks show figures by `palette_png`. Their own way is set up with the first figure."""
    ipython = sys.modules.get("IPython")  # outside notebooks it need not be installed
    if ipython and (shell := ipython.get_ipython()):
        shell.display_formatter.formatters["image/png"].for_type(Figure, palette_png)


def look(name: str, position: int = 0) -> Look:
    """The look of a stage or a modality, or the `position`-th of the others."""
    return {**STAGES, **MODALITIES}.get(name, OTHERS[position % len(OTHERS)])


def curves(
    ax: Axes, bands: Mapping[str, Band], x: Sequence[float] | np.ndarray | None = None, x_label: str = "layer"
) -> None:
    """Curves with their 95 % intervals shaded, each named in the legend."""
    for position, (name, band) in enumerate(bands.items()):
        points = np.arange(len(band.value)) if x is None else np.asarray(x)
        colour, dash, marker = look(name, position)
        ax.plot(points, band.value, color=colour, linestyle=dash, marker=marker, label=name)
        ax.fill_between(points, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    ax.set_xlabel(x_label)
    if x is None:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()


def controls(
    ax: Axes, bands: Mapping[str, Band], x: Sequence[float] | np.ndarray | None = None, name: str = "control"
) -> None:
    """The control beside each curve of these names: grey, dashed and marked as the curve is, in one entry.

    Call it after `curves`, with the same names in the same order.
    """
    for position, (curve, band) in enumerate(bands.items()):
        points = np.arange(len(band.value)) if x is None else np.asarray(x)
        _, dash, marker = look(curve, position)
        style: dict[str, Any] = {"linestyle": dash, "marker": marker, "markersize": 3, "linewidth": 1}
        ax.plot(points, band.value, color=MUTED, label=None if position else name, **style)
        ax.fill_between(points, band.low, band.high, color=MUTED, alpha=0.18, linewidth=0)
    ax.legend()


def level(ax: Axes, value: float, name: str) -> None:
    """A horizontal reference line, such as chance, named at its right end."""
    ax.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    ax.annotate(
        name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=MUTED, fontsize=8
    )


def heat(
    ax: Axes,
    values: Float[np.ndarray, "rows columns"],
    label: str,
    limits: tuple[float, float],
    mark: tuple[int, int] | None = None,
    first: int = 0,
) -> Any:
    """A grid of image layers (rows) by caption layers (columns), both from layer `first` at the bottom left.

    Give the same `limits` to the grids that are to be compared; `mark` rings one cell of `values`.
    """
    rows, columns = values.shape
    extent = (first - 0.5, first + columns - 0.5, first - 0.5, first + rows - 0.5)
    shown = ax.imshow(values, origin="lower", vmin=limits[0], vmax=limits[1], extent=extent)
    ax.set_title(label)
    ax.set_xlabel("caption layer")
    ax.set_ylabel("image layer")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if mark is not None:
        for colour, width in (("white", 3.5), ("black", 1.2)):  # seen on light cells and on dark ones
            ax.plot(first + mark[1], first + mark[0], "o", color=colour, ms=11, mfc="none", mew=width)
    return shown


def line_look(position: int) -> dict[str, Any]:
    """Plot keywords for one of many strategies: a look that comes back has another filling of its marker."""
    colour, dash, marker = look("", position)
    filling = FILLINGS[position // len(OTHERS) % len(FILLINGS)]
    return {"color": colour, "linestyle": dash, "marker": marker, "fillstyle": filling}


def points(ax: Axes, named: Mapping[str, tuple[Interval, Interval]]) -> None:
    """Points with the intervals of their x and y, named in a legend on the right."""
    for position, (name, (x, y)) in enumerate(named.items()):
        style = line_look(position) | {"linestyle": "none", "markersize": 7}
        ax.plot([x.low, x.high], [y.value] * 2, color=style["color"], linewidth=0.7)
        ax.plot([x.value] * 2, [y.low, y.high], color=style["color"], linewidth=0.7)
        ax.plot(x.value, y.value, label=name, zorder=3, markerfacecoloralt=ax.get_facecolor(), **style)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def bars(
    ax: Axes,
    groups: Mapping[str, Mapping[str, Interval]],
    label: str,
    chance: Mapping[str, float] | None = None,
) -> None:
    """Points with 95 % intervals: one row per key of the inner mappings, one look per group.

    `chance` marks a reference in each row.
    """
    rows = list(next(iter(groups.values())))
    for position, (name, intervals) in enumerate(groups.items()):
        colour, _, marker = look(name, position)
        shift = min(0.22, 0.8 / len(groups)) * (position - (len(groups) - 1) / 2)
        for row, key in enumerate(rows):
            value, low, high, _ = intervals[key]
            ax.plot([low, high], [row + shift] * 2, color=colour, linewidth=2)
            ax.plot(value, row + shift, marker, color=colour, label=name if row == 0 else None)
    for row, key in enumerate(rows if chance else []):
        ax.plot([chance[key]] * 2, [row - 0.4, row + 0.4], color=MUTED, linestyle=(0, (2, 2)))  # type: ignore[index]
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(label)
    if len(groups) > 1:
        ax.legend()


def images(shown: Sequence[Image], texts: Sequence[str], columns: int = 4) -> Figure:
    """Small images in rows, each with its text below it."""
    fig, axes = figure(columns, -(-len(shown) // columns), height=2.5, width=2.3)
    for ax in axes:
        ax.set_axis_off()
    for ax, image, text in zip(axes, shown, texts, strict=False):
        ax.imshow(image, interpolation="nearest")
        ax.text(0.5, -0.05, text, transform=ax.transAxes, ha="center", va="top", fontsize=8, parse_math=False)
    return fig


def footer(fig: Figure, *, n: int | str, seed: int | str, method: str, null: str) -> None:
    """Draw N, seed, method and null in small print below a figure, which can then be judged on its own."""
    text = f"N = {n} · seed {seed} · {method} · null: {null}"
    width = int(fig.get_figwidth() * 16)
    fig.text(0.01, -0.02, textwrap.fill(text, width), va="top", fontsize=8, color=MUTED)
