"""Bar charts of two to four months, at any size: which bar is the highest, the lowest, higher than another.

Held out from training: a fifth of the pairs of months; a chart that shows one of them is for evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from vlalign_utils.data.items import Split
from vlalign_utils.data.things.written_signs import typeface

MONTHS = {
    "Jan": "January",
    "Feb": "February",
    "Mar": "March",
    "Apr": "April",
    "May": "May",
    "Jun": "June",
    "Jul": "July",
    "Aug": "August",
    "Sep": "September",
    "Oct": "October",
    "Nov": "November",
    "Dec": "December",
}
LEAST, MOST = 2, 4  # bars
STEPS = 8  # heights that a bar may have; no two bars of a chart have the same


@dataclass(frozen=True, slots=True)
class MonthChart:
    """Months in the order of the year, and the height of each bar. `seed` fixes colours and widths."""

    months: tuple[str, ...]
    heights: tuple[int, ...]
    seed: int

    def ranked(self) -> list[str]:
        """Months from the lowest bar to the highest."""
        return [month for _, month in sorted(zip(self.heights, self.months, strict=True))]


def held_out(months: tuple[str, ...]) -> bool:
    """Whether two neighbouring bars are of months that no training chart has side by side."""
    names = list(MONTHS)
    return any((names.index(a) + 2 * names.index(b)) % 5 == 0 for a, b in pairwise(months))


def month_charts(n: int, seed: int, split: Split) -> Iterator[MonthChart]:
    """Yield `n` charts. The same arguments always give the same charts."""
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    names = list(MONTHS)
    while n:
        count = int(rng.integers(LEAST, MOST + 1))
        months = tuple(names[i] for i in sorted(rng.permutation(len(names))[:count]))
        heights = tuple(int(h) for h in rng.permutation(STEPS)[:count] + 1)
        if held_out(months) == (split == "test"):
            n -= 1
            yield MonthChart(months, heights, int(rng.integers(2**31)))


def draw_chart(
    chart: MonthChart, side: int
) -> tuple[UInt8[np.ndarray, "side side 3"], list[tuple[float, ...]]]:
    """The chart's image, and each bar's column: left, top, right and bottom as shares of the side."""
    rng = np.random.default_rng(chart.seed)
    paper, ink = tuple(int(c) for c in rng.integers(232, 256, 3)), (40, 40, 40)
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    font = typeface("DejaVuSans", round(0.105 * side))
    ground, top, left = 0.82 * side, 0.06 * side, 0.05 * side
    column = (side - 2 * left) / len(chart.months)
    width = column * rng.uniform(0.5, 0.8)
    same = rng.random() < 0.4
    colours = rng.integers(30, 200, (len(chart.months), 3))
    for i, (month, height) in enumerate(zip(chart.months, chart.heights, strict=True)):
        middle = left + (i + 0.5) * column
        colour = tuple(int(c) for c in colours[0 if same else i])
        high = ground - height / STEPS * (ground - top)
        draw.rectangle((middle - width / 2, high, middle + width / 2, ground), colour)
        draw.text((middle, ground + 0.03 * side), month, ink, font, anchor="mt")
    draw.line((left / 2, ground, side - left / 2, ground), ink, max(1, round(0.012 * side)))
    columns = [(left + i * column, left + (i + 1) * column) for i in range(len(chart.months))]
    return np.asarray(image), [(start / side, 0.0, end / side, 1.0) for start, end in columns]
