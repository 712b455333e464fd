"""Bar charts: two to four bars of different colours and heights, in pictures and in two languages.

As in scenes, the splits are disjoint by construction: one height per colour is held out; a training chart
never shows such a bar, and an evaluation chart always shows at least one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import UInt8

from vlalign_utils.data.language import Language, Question, question, word
from vlalign_utils.data.render import SIDE, background, finish, paint
from vlalign_utils.data.scenes import COLOURS, DIGITS, Split

HEIGHTS = DIGITS[1:7]
LEAST, MOST = 2, 4  # bars
UNIT = 6  # pixels
GROUND = 43  # pixels from the top: the axis
TOPICS = ("highest", "lowest", "value")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; its height is a number word."""

    colour: str
    height: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart's bars from left to right. `seed` fixes background, noise and the bars' widths."""

    bars: tuple[Bar, ...]
    seed: int
    split: Split


def held_out(colour: str, height: str) -> bool:
    """Whether no training chart shows a bar of this colour and height (one height in six for a colour)."""
    return (COLOURS.index(colour) + HEIGHTS.index(height)) % len(HEIGHTS) == 0


def charts(n: int, seed: int, split: Split) -> Iterator[Chart]:
    """Yield `n` charts. The same arguments always give the same charts."""
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    while n:
        count = int(rng.integers(LEAST, MOST + 1))
        colours, heights = rng.permutation(len(COLOURS))[:count], rng.permutation(len(HEIGHTS))[:count]
        bars = tuple(Bar(COLOURS[c], HEIGHTS[h]) for c, h in zip(colours, heights, strict=True))
        if any(held_out(bar.colour, bar.height) for bar in bars) == (split == "test"):
            n -= 1
            yield Chart(bars, int(rng.integers(2**31)), split)


def edges(chart: Chart) -> list[tuple[int, int]]:
    """Left and right end of each bar in pixels: the width is shared equally, with a gap between bars."""
    step = (SIDE - 4) / len(chart.bars)
    return [(round(3 + i * step), round(3 + (i + 1) * step) - 3) for i in range(len(chart.bars))]


def render_chart(chart: Chart) -> UInt8[np.ndarray, "48 48 3"]:
    """The chart's picture, with a grid line at every unit; the same chart always gives the same pixels."""
    rng = np.random.default_rng(chart.seed)
    canvas = background(rng)
    for line in range(GROUND - UNIT * len(HEIGHTS), GROUND + 1, UNIT):
        canvas[line] += 30 if line < GROUND else 120
    for bar, (left, right) in zip(chart.bars, edges(chart), strict=True):
        mask = np.zeros((SIDE, SIDE))
        mask[GROUND - UNIT * (HEIGHTS.index(bar.height) + 1) : GROUND, left:right] = 1
        paint(canvas, mask, bar.colour, rng)
    return finish(canvas, rng)


def chart_caption(
    chart: Chart, language: Language, rng: np.random.Generator | None = None, mark: str = ""
) -> str:
    """Name the bars from left to right, or with `rng` in random order; `mark` stands before each colour."""
    order = range(len(chart.bars)) if rng is None else rng.permutation(len(chart.bars))
    bars = [chart.bars[i] for i in order]
    said = [f"{mark}{word(bar.colour, language)} {word(bar.height, language)}" for bar in bars]
    return ", ".join(said) + "."


def ask_chart(chart: Chart, language: Language, rng: np.random.Generator) -> Question:
    """Ask which bar is highest or lowest, or how high one of them is."""
    topic = TOPICS[rng.integers(len(TOPICS))]
    if topic == "value":
        bar = chart.bars[rng.integers(len(chart.bars))]
        return question(topic, language, bar.height, HEIGHTS, colour=bar.colour)
    ordered = sorted(chart.bars, key=lambda bar: HEIGHTS.index(bar.height))
    shown = tuple(bar.colour for bar in chart.bars)
    return question(topic, language, ordered[0 if topic == "lowest" else -1].colour, shown)
