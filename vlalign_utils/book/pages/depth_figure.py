"""The front page's figure: where, by six definitions, over the depth of every model, with controls."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from vlalign_utils.evidence import plots

NOTEBOOK = "09_where"


class View(NamedTuple):
    """A profile over depth that the chapter published, and how it is shown."""

    name: str
    title: str
    unit: str
    control: str

    @property
    def table(self) -> str:
        """Name of its table, which has the curves `measured` and `control`."""
        return f"profile, {self.name}"


VIEWS = (
    View("decodable", "read off image tokens", "share right", "a random connector"),
    View("aligned", "like texts in other words", "overlap", "the strongest of three nulls"),
    View("attended", "attended by the text", "share", "even attention"),
    View("worked on from here on", "needed: frozen from here on", "loss", "no effect"),
    View("needed from here on", "needed: zeroed from here on", "loss", "as many tokens of the text"),
    View("sufficient", "enough when patched in", "gain", "no effect"),
)
CONTROLS = "; ".join(f"{view.title}: {view.control}" for view in VIEWS)
Curves = Mapping[View, Mapping[str, pd.DataFrame]]  # columns curve, depth, value, low and high, by model


def draw(curves: Curves, titles: Mapping[str, str], front: Collection[str], path: Path) -> None:
    """Draw one panel per view: the models of `front` in colour, the others thin behind them.

    The legend has `titles`, those of the models by name.
    """
    plt.style.use(plots.STYLE)
    fig, axes = plt.subplots(2, 3, figsize=(8.4, 5.2), sharex=True)
    for ax, (view, by_name) in zip(axes.flat, curves.items(), strict=True):
        for name in sorted(by_name, key=front.__contains__):  # those in front are drawn last
            look = plots.look(name, list(by_name).index(name))
            _curve(ax, titles[name], look, by_name[name], name in front)
        ax.set_title(view.title, fontsize=10)
        ax.set_ylabel(view.unit)
        ax.set(xlim=(0, 1))
    for ax in axes[-1]:
        ax.set_xlabel("relative depth")
    drawn = {
        label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if drawn:
        fig.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, fontsize=8)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def _curve(ax: Axes, title: str, look: plots.Look, rows: pd.DataFrame, front: bool) -> None:
    """A model's curve, and its control in grey."""
    colour, dash, marker = look
    measured, control = (rows[rows.curve == which] for which in ("measured", "control"))
    style: dict[str, Any] = {"color": colour, "linewidth": 2, "marker": marker, "markersize": 3}
    if not front:
        style |= {"linewidth": 0.9, "markersize": 2.5, "alpha": 0.6}
    ax.plot(measured.depth, measured.value, label=title, linestyle=dash, zorder=2 + front, **style)
    if front:
        ax.fill_between(measured.depth, measured.low, measured.high, color=colour, alpha=0.18, linewidth=0)
    grey: dict[str, Any] = {"color": plots.MUTED, "linewidth": 1.6 if front else 0.6, "zorder": 1}
    ax.plot(control.depth, control.value, linestyle=(0, (3, 2)), label="control" if front else None, **grey)


def alternative(curves: Curves, titles: Mapping[str, str]) -> str:
    """The figure in words: where each curve is highest, and its control there."""
    peaks = []
    for view, by_name in curves.items():
        for name, rows in by_name.items():
            values = {of: rows[rows.curve == of].set_index("depth").value for of in ("measured", "control")}
            top = max(values["measured"].index, key=values["measured"].__getitem__)
            here, there = (float(own[top]) for own in values.values())
            told = f"highest, {here:.2f}, at depth {top:.2f}, its control {there:.2f}"
            peaks.append(f"{view.title}, {titles[name]}: {told}")
    return "Six panels over the relative depth of each model. " + "; ".join(peaks) + "."
