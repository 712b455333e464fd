"""What a figure shows, in words, read off its axes: the alternative text for whoever does not see it."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

CURVES = 6  # of a panel that are told one by one


def describe(fig: Figure) -> str:
    """Sentences on each panel: its axes, and where each curve begins, is highest and ends.

    Example:
        >>> from matplotlib import pyplot as plt
        >>> fig, ax = plt.subplots()
        >>> _ = ax.plot([0, 0.5, 1], [0.1, 0.8, 0.2], label="tuned")
        >>> _ = ax.set(title="Loss", xlabel="depth", ylabel="probability")
        >>> describe(fig)
        'Loss, probability over depth: tuned 0.1 at 0, highest 0.8 at 0.5, 0.2 at 1.'
    """
    panels = [ax for ax in fig.axes if ax.get_label() != "<colorbar>" and ax.axison]
    return " ".join(_panel(ax) for ax in panels)


def _panel(ax: Axes) -> str:
    over = " over ".join(part for part in (ax.get_ylabel(), ax.get_xlabel()) if part)
    head = ", ".join(part for part in (ax.get_title().replace("\n", " "), over) if part) or "panel"
    told = [*_grids(ax), *_points(ax), *_curves(ax)]
    return f"{head}: {'; '.join(told)}." if told else f"{head}."


def _grids(ax: Axes) -> Iterator[str]:
    for image in ax.images:
        values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.ndim == 2 and np.isfinite(values).any():
            row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
            first_x, _, first_y, _ = (int(np.ceil(end)) for end in image.get_extent())
            place = f"column {first_x + int(column)}, row {first_y + int(row)}"
            size = f"{values.shape[0]} rows by {values.shape[1]} columns"
            yield f"{size}, highest {values[row, column]:.2g} at {place}"


def _points(ax: Axes) -> Iterator[str]:
    """Single points beside the names of their rows."""
    names = {
        tick: label.get_text() for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    }
    for line in ax.lines:
        x, y = _data(line)
        if len(x) == 1 and line.get_marker() not in ("None", "", None):
            row = min(names, key=lambda tick: abs(tick - y[0])) if names else None
            yield f"{names[row]} {x[0]:.2g}" if row is not None and names[row] else f"{x[0]:.2g}, {y[0]:.2g}"


def _curves(ax: Axes) -> Iterator[str]:
    drawn = [
        line for line in ax.lines if len(_data(line)[0]) > 2 and not str(line.get_label()).startswith("_")
    ]
    for line in drawn[:CURVES]:
        x, y = _data(line)
        top = int(np.nanargmax(y))
        yield (
            f"{line.get_label()} {y[0]:.2g} at {x[0]:.2g}, highest {y[top]:.2g} at {x[top]:.2g}, "
            f"{y[-1]:.2g} at {x[-1]:.2g}"
        )
    if len(drawn) > CURVES:
        yield f"and {len(drawn) - CURVES} more curves"


def _data(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(part, dtype=float) for part in line.get_data())
    known = np.isfinite(y)
    return x[known], y[known]
