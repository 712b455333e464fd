"""Scenes of real things: which, in what style, where, how large, and on what background.

A scene is all that an image shows, so that it can be rendered at any size. The splits are disjoint by
construction: a training scene shows nothing that is held out (`splits.py`), and its seed is even; a test
scene's seed is odd, and with several things it shows a combination, a thing or a style that is held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vlalign_utils.data.items import Split
from vlalign_utils.data.things.backgrounds import Background, draw_background
from vlalign_utils.data.things.splits import (
    TRAINED_STYLES,
    held_out_pair,
    shows_held_out,
    trained_things,
)
from vlalign_utils.data.things.table import Thing, things

Arrangement = Literal["alone", "row", "column", "quadrants"]

MOST = {"alone": 1, "row": 3, "column": 3, "quadrants": 4}  # things that fit
SIZES = {  # of a cell, as a fraction of the image's side, by the number of things
    "alone": {1: (0.55, 0.92)},
    "row": {1: (0.4, 0.5), 2: (0.36, 0.48), 3: (0.26, 0.32)},
    "column": {1: (0.4, 0.5), 2: (0.36, 0.48), 3: (0.26, 0.32)},
    "quadrants": {n: (0.3, 0.44) for n in (1, 2, 3, 4)},
}
DRIFT = 0.12  # off the middle across a row or column, at most
MIRRORED_SHARE = 0.3
TRIES = 1000


@dataclass(frozen=True, slots=True)
class Placed:
    """A drawing in a scene: the thing's index, its style, centre and size as fractions of the side."""

    index: int
    style: str
    x: float
    y: float
    size: float
    mirrored: bool

    @property
    def thing(self) -> Thing:
        """The thing that is drawn."""
        return things()[self.index]


@dataclass(frozen=True, slots=True)
class Scene:
    """An image's content. In a row things go from left to right, in a column from top to bottom."""

    placed: tuple[Placed, ...]
    arrangement: Arrangement
    background: Background
    seed: int
    split: Split

    @property
    def things(self) -> tuple[Thing, ...]:
        """The thing of each drawing, repeated where it is drawn several times."""
        return tuple(placed.thing for placed in self.placed)


def draw_scene(
    rng: np.random.Generator,
    split: Split,
    count: int,
    arrangement: Arrangement | None = None,
    *,
    among: Sequence[Thing] | None = None,
    styles: Sequence[str] = TRAINED_STYLES,
) -> Scene:
    """Draw a scene of `count` different things.

    Args:
        rng: what is drawn from.
        split: "train" or "test".
        count: number of things, 1 to 4.
        arrangement: by default alone for one thing, a row or column for two or three, quadrants for four.
        among: things to draw from; by default those of training.
        styles: styles to draw from; by default those of training.

    Raises ValueError for an unknown split, a number of things that does not fit, or, for "train", held-out
    things or styles.
    """
    among = trained_things() if among is None else among
    if arrangement is None:
        one_line: Arrangement = ("row", "column")[rng.integers(2)]
        arrangement = "alone" if count == 1 else "quadrants" if count > 3 else one_line
    for _ in range(TRIES):
        chosen = _choose(rng, split, count, among)
        scene = place(rng, split, chosen, arrangement, styles=styles)
        if count == 1 or _shows_held_out(scene) == (split == "test"):
            return scene
    raise ValueError(f"no {split} scene of {count} things among {len(among)}: give more things")


def draw_repeated(
    rng: np.random.Generator,
    split: Split,
    number: int,
    others: int = 0,
    *,
    among: Sequence[Thing] | None = None,
    styles: Sequence[str] = TRAINED_STYLES,
) -> Scene:
    """Draw `number` times one thing that can be counted, and `others` different ones once each, in quadrants.

    The repeated thing comes first in the scene. Arguments and errors as for `draw_scene`.
    """
    among = [t for t in (trained_things() if among is None else among) if t.number == "one"]
    for _ in range(TRIES):
        first, *rest = _choose(rng, split, 1 + others, among)
        scene = place(rng, split, [first] * number + rest, "quadrants", styles=styles)
        if len(scene.placed) == 1 or _shows_held_out(scene) == (split == "test"):
            return scene
    raise ValueError(f"no {split} scene of {number} equal things among {len(among)}: give more things")


def place(
    rng: np.random.Generator,
    split: Split,
    shown: Sequence[Thing],
    arrangement: Arrangement,
    *,
    styles: Sequence[str] = TRAINED_STYLES,
) -> Scene:
    """Scene of these things in this order; one that is shown several times has one style.

    Raises ValueError as `draw_scene` does.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; expected one of {get_args(Split)}")
    if not 1 <= len(shown) <= MOST[arrangement]:
        raise ValueError(f"{arrangement!r} holds 1 to {MOST[arrangement]} things; got {len(shown)}")
    if split == "train" and not set(styles) <= set(TRAINED_STYLES):
        raise ValueError(f"training scenes are drawn in {', '.join(TRAINED_STYLES)}; got {', '.join(styles)}")
    style_of = {thing: styles[int(rng.integers(len(styles)))] for thing in dict.fromkeys(shown)}
    least, most = SIZES[arrangement][len(shown)]
    size = rng.uniform(least, most)
    placed = []
    for thing, (x, y, free_x, free_y) in zip(shown, _places(rng, len(shown), arrangement), strict=True):
        own = size * rng.uniform(0.9, 1.0)
        free_x, free_y = max(0.0, free_x - own / 2), max(0.0, free_y - own / 2)
        placed.append(
            Placed(
                index=thing.index,
                style=style_of[thing],
                x=round(float(x + rng.uniform(-free_x, free_x)), 4),
                y=round(float(y + rng.uniform(-free_y, free_y)), 4),
                size=round(float(own), 4),
                mirrored=bool(rng.random() < MIRRORED_SHARE),
            )
        )
    seed = 2 * int(rng.integers(2**30)) + (split == "test")
    return Scene(tuple(placed), arrangement, draw_background(rng), seed, split)


def _choose(rng: np.random.Generator, split: Split, count: int, among: Sequence[Thing]) -> list[Thing]:
    if len(among) < count:
        raise ValueError(f"{count} different things were asked for among {len(among)}")
    chosen = [among[i] for i in rng.choice(len(among), count, replace=False)]
    if split == "train" and any(map(_never, chosen)):
        raise ValueError("a training scene was asked for among things that are held out")
    if split == "test" and count > 1 and not any(map(_never, chosen)):
        # One pair in ten is held out: choose the last thing among those that make such a pair.
        partners = [t for t in among if t not in chosen[:-1] and held_out_pair(chosen[0], t)]
        if partners:
            chosen[-1] = partners[rng.integers(len(partners))]
    return chosen


def _never(thing: Thing) -> bool:
    return shows_held_out([thing])


def _shows_held_out(scene: Scene) -> bool:
    return shows_held_out(scene.things, [placed.style for placed in scene.placed])


def _places(
    rng: np.random.Generator, count: int, arrangement: Arrangement
) -> list[tuple[float, float, float, float]]:
    """Centre of each place, and how far a drawing's edge may lie from it, along x and y."""
    if arrangement == "alone":
        return [(0.5, 0.5, 0.5, 0.5)]
    if arrangement == "quadrants":
        chosen = rng.permutation(4)[:count]
        return [(0.25 + 0.5 * (q % 2), 0.25 + 0.5 * (q // 2), 0.25, 0.25) for q in chosen]
    along = [((i + 0.5) / count, 0.5 / count) for i in range(count)]
    across = 0.5 + rng.uniform(-DRIFT, DRIFT)
    if arrangement == "row":
        return [(centre, across, free, 0.5 - abs(across - 0.5)) for centre, free in along]
    return [(across, centre, 0.5 - abs(across - 0.5), free) for centre, free in along]
