"""The front page's figure: the model upright, and beside it, over the same depth, what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from vlalign_utils.evidence import plots

LAYERS = 8  # boxes in the drawing; it stands for a decoder of any depth


class View(NamedTuple):
    """A published curve over depth: the chapter and table it is in, its name there, and how it is shown."""

    notebook: str
    table: str
    curve: str  # {} stands for the last stage
    control: str  # the curve that shows what the first would be worth without the effect
    title: str
    unit: str


VIEWS = (
    View(
        "02_probing",
        "transfer",
        "{}, caption to image",
        "{}, caption to image, control",
        "where a probe of captions\nreads images",
        "score",
    ),
    View(
        "03_geometry",
        "entry",
        "{}",
        "shuffled pairs",
        "which caption layers the\nentering image matches",
        "overlap",
    ),
    View(
        "04_causal",
        "loss",
        "all image tokens",
        "as many text tokens",
        "where image tokens\nhave work to do",
        "loss when frozen",
    ),
)
CONTROLS = (
    "the control of each curve, from left to right the same probe on random classes, shuffled pairs, and "
    "tokens of the question frozen instead (fewer of them, and words)"
)
Curves = Mapping[View, Mapping[str, pd.DataFrame]]  # columns depth, value, low and high, by model


def draw(curves: Curves, controls: Curves, path: Path) -> None:
    """Draw the model and one panel per view, every curve with its control in grey."""
    plt.style.use(plots.STYLE)
    ratios = [1.25, *(1 for _ in curves)]
    fig, axes = plt.subplots(1, len(ratios), figsize=(8.4, 4.4), sharey=True, width_ratios=ratios)
    _model(axes[0])
    for ax, (view, by_name) in zip(axes[1:], curves.items(), strict=True):
        for position, name in enumerate(by_name):
            rows, (_, dash, _) = controls[view][name], plots.look(name, position)
            style = {"color": plots.MUTED, "linestyle": dash, "linewidth": 1}
            ax.plot(rows.value, rows.depth, label=None if position else "controls", **style)
            ax.fill_betweenx(rows.depth, rows.low, rows.high, color=plots.MUTED, alpha=0.12, linewidth=0)
        for position, (name, rows) in enumerate(by_name.items()):
            colour, dash, marker = plots.look(name, position)
            ax.plot(rows.value, rows.depth, color=colour, linestyle=dash, marker=marker, label=name)
            ax.fill_betweenx(rows.depth, rows.low, rows.high, color=colour, alpha=0.18, linewidth=0)
        ax.set_title(view.title, fontsize=9)
        ax.set_xlabel(view.unit)
        ax.tick_params(labelleft=False)
        ax.grid(axis="y", color=plots.MUTED, alpha=0.25)
        if by_name:
            ax.legend(fontsize=7)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def _model(ax: Axes) -> None:
    """The decoder as a stack of layers, images and words entering below, the answer leaving above."""
    image, words = plots.MODALITIES["image"].colour, plots.MODALITIES["text"].colour
    ax.set(xlim=(0, 1), ylim=(-0.32, 1.14), ylabel="relative depth")
    ax.set_yticks([0, 0.5, 1])
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    for layer in range(LAYERS):
        box = Rectangle(
            (0.12, layer / LAYERS + 0.012), 0.84, 1 / LAYERS - 0.024, fill=False, edgecolor=plots.MUTED
        )
        ax.add_patch(box)
    for x, colour, name in ((0.33, image, "image\nvision tower\nconnector"), (0.75, words, "question")):
        for shift in (-0.09, 0, 0.09):
            arrow = FancyArrowPatch((x + shift, -0.06), (x + shift, 1.02), arrowstyle="-|>", mutation_scale=9)
            arrow.set(color=colour, linewidth=1.4, alpha=0.85)
            ax.add_patch(arrow)
        ax.text(x, -0.09, name, color=colour, ha="center", va="top", fontsize=9)
    ax.text(0.75, 1.05, "answer", color=words, ha="center", va="bottom", fontsize=9)
    ax.set_title("the language model", fontsize=9)


def alternative(curves: Curves, controls: Curves) -> str:
    """The figure in words: where each curve is highest, and its control there."""
    peaks = []
    for view, by_name in curves.items():
        title = view.title.replace("\n", " ")
        for name, rows in by_name.items():
            top = rows.iloc[int(rows.value.argmax())]
            control = controls[view][name].set_index("depth").value
            there = f", its control {control[top.depth]:.2f}" if top.depth in control.index else ""
            peaks.append(f"{title}, {name}: highest, {top.value:.2f}, at depth {top.depth:.2f}{there}")
    return "The decoder upright, images and words entering below; beside it " + "; ".join(peaks) + "."
