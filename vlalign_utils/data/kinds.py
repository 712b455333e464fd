"""The kinds of pictures there are: how each is drawn at random, painted, put into words and asked about.

A kind is one entry of `KINDS`, from which training draws; its text chats are shared out in `documents.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vlalign_utils.data.charts import HEIGHTS, ask_chart, chart_caption, charts, edges, render_chart
from vlalign_utils.data.language import (
    ORDER,
    Language,
    Question,
    ask_digit,
    ask_scene,
    attribute,
    caption,
    word,
)
from vlalign_utils.data.render import SIDE, digit_items, render, render_digit
from vlalign_utils.data.scenes import COLOURS, COLUMNS, DIGITS, FORMS, ROWS, SIZES, Scene, Split, scenes
from vlalign_utils.data.signs import WORDS, Sign, ask_sign, box, render_sign, sign_caption, signs


@dataclass(frozen=True, slots=True)
class Written:
    """A handwritten digit alone: item `item` of those of its value. `seed` fixes place, ground and noise."""

    value: int
    item: int
    seed: int
    split: Split


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture and the words for it; edges in pixels, right and bottom not included."""

    left: int
    top: int
    right: int
    bottom: int
    words: tuple[str, ...]


@runtime_checkable
class Say(Protocol):
    """Puts a subject into words; with `rng` in random order. `mark` is put before words none can predict."""

    def __call__(
        self, subject: Any, /, language: Language, rng: np.random.Generator | None = None, mark: str = ""
    ) -> str:
        """The caption."""


@dataclass(frozen=True)
class Kind:
    """One kind of picture. `share` is the part of the pictures that it takes in training."""

    name: str
    share: float
    draw: Callable[[int, int, Split], Iterator[Any]]
    render: Callable[[Any], UInt8[np.ndarray, "48 48 3"]]
    say: Say
    ask: Callable[[Any, Language, np.random.Generator], Question]
    regions: Callable[[Any], list[Region]]
    axes: tuple[tuple[str, ...], ...]  # what each of a region's words is one of


def digits(n: int, seed: int, split: Split) -> Iterator[Written]:
    """Yield `n` handwritten digits, all values in turn, and all handwritten items of each."""
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    counts = {value: len(items) for value, items in digit_items(split).items()}
    start = int(rng.integers(10_000))
    for i in range(start, start + n):
        yield Written(i % 10, (i // 10) % counts[i % 10], int(rng.integers(2**31)), split)


def _render_digit(digit: Written) -> UInt8[np.ndarray, "48 48 3"]:
    return render_digit(digit.value, digit.item, digit.split, digit.seed)


def _say_digit(
    digit: Written, language: Language, rng: np.random.Generator | None = None, mark: str = ""
) -> str:
    return word(DIGITS[digit.value], language) + "."


def _quadrants(scene: Scene) -> list[Region]:
    half = SIDE // 2
    corners = [(COLUMNS.index(t.column) * half, ROWS.index(t.row) * half) for t in scene.things]
    words = [tuple(attribute(t, name) for name in ("size", "colour", "form")) for t in scene.things]
    return [Region(x, y, x + half, y + half, said) for (x, y), said in zip(corners, words, strict=True)]


def _word(sign: Sign) -> list[Region]:
    left, top, right, bottom = box(sign)
    margin = SIDE // 12  # half a token: every token that shows part of the word takes part
    across = max(0, left - margin), min(SIDE, right + margin)
    down = max(0, top - margin), min(SIDE, bottom + margin)
    return [Region(across[0], down[0], across[1], down[1], (sign.text,))]


def _say_scene(
    scene: Scene, language: Language, rng: np.random.Generator | None = None, mark: str = ""
) -> str:
    shuffle = rng is not None and bool(rng.integers(2))
    return caption(scene, language, ORDER[language], rng, mark, shuffle)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("scenes", 0.5, scenes, render, _say_scene, ask_scene, _quadrants, (SIZES, COLOURS, FORMS)),
        Kind(
            "charts",
            0.15,
            charts,
            render_chart,
            chart_caption,
            ask_chart,
            lambda chart: [
                Region(left, 0, right, SIDE, (bar.colour, bar.height))
                for bar, (left, right) in zip(chart.bars, edges(chart), strict=True)
            ],
            (COLOURS, HEIGHTS),
        ),
        Kind(
            "signs",
            0.2,
            signs,
            render_sign,
            sign_caption,
            ask_sign,
            _word,
            (WORDS,),
        ),
        Kind(
            "digits",
            0.15,
            digits,
            _render_digit,
            _say_digit,
            lambda digit, language, rng: ask_digit(digit.value, language),
            lambda digit: [Region(0, 0, SIDE, SIDE, (DIGITS[digit.value],))],
            (DIGITS,),
        ),
    )
}
