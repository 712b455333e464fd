"""The embedded world: seeded scenes of one to three things, and the facts that only text teaches.

A *thing* has a shape (or is a handwritten digit), a colour, a size and a quadrant of the picture. Within a
scene shapes, colours and quadrants are all different, so that "the red thing" names one thing.

The two splits are disjoint by construction, not only by seed: one colour per shape is held out, a training
scene never shows a held-out combination, and an evaluation scene always shows at least one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np

from vlalign_utils.data.items import Split

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "pink")
SIZES = ("small", "large")
ROWS = ("top", "bottom")
COLUMNS = ("left", "right")
FORMS = SHAPES + DIGITS

KINDS = ("fruit", "metal", "plant", "stone")
OWNERS = ("anna", "bruno", "carla", "dario")
PARITIES = ("even", "odd")

# Facts: fixed tables that no picture shows. Each kind has two shapes and each owner two colours.
KIND_OF = {shape: KINDS[(3 * i + i // 4) % 4] for i, shape in enumerate(SHAPES)} | {
    digit: PARITIES[i % 2] for i, digit in enumerate(DIGITS)
}
OWNER_OF = {colour: OWNERS[(i + i // 4) % 4] for i, colour in enumerate(COLOURS)}

MAX_THINGS = 3
DIGIT_SHARE = 0.3  # of things that are handwritten digits


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene; attributes are English words, quadrants are given by row and column."""

    form: str
    colour: str
    size: str
    row: str
    column: str

    @property
    def is_digit(self) -> bool:
        """Whether the thing is a handwritten digit."""
        return self.form in DIGITS

    @property
    def kind(self) -> str:
        """The kind its form belongs to: a fact no picture shows."""
        return KIND_OF[self.form]

    @property
    def owner(self) -> str:
        """Who owns things of its colour: a fact no picture shows."""
        return OWNER_OF[self.colour]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's content. `seed` fixes background, noise, jitter and the handwriting; `split` its digits."""

    things: tuple[Thing, ...]
    seed: int
    split: Split


def held_out(form: str, colour: str) -> bool:
    """Whether this form never has this colour in a training scene (one colour in eight for each form)."""
    return (3 * FORMS.index(form) + COLOURS.index(colour)) % len(COLOURS) == 0


def scenes(
    n: int, seed: int, split: Split, min_things: int = 1, max_things: int = MAX_THINGS
) -> Iterator[Scene]:
    """Yield `n` scenes. The same arguments always give the same scenes.

    Raises ValueError for an unknown split or an impossible number of things.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; expected one of {get_args(Split)}")
    if not 1 <= min_things <= max_things <= MAX_THINGS:
        raise ValueError(f"a scene has 1 to {MAX_THINGS} things; got {min_things} to {max_things}")
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    for _ in range(n):
        yield _scene(rng, split, int(rng.integers(min_things, max_things + 1)))


def lists(n: int, seed: int, least: int, most: int) -> Iterator[Scene]:
    """Yield `n` scenes with more things than a picture holds: form and colour count, the rest is filler.

    Only texts speak of them, and as training scenes they show no held-out combination.
    """
    rng = np.random.default_rng([seed, len(FORMS)])
    size, row, column = SIZES[1], ROWS[0], COLUMNS[0]
    for _ in range(n):
        count = int(rng.integers(least, most + 1))
        pairs = [("", "")]
        while pairs == [("", "")] or any(held_out(*pair) for pair in pairs):
            forms, colours = rng.permutation(len(FORMS))[:count], rng.permutation(len(COLOURS))[:count]
            pairs = [(FORMS[f], COLOURS[c]) for f, c in zip(forms, colours, strict=True)]
        things = tuple(Thing(form, colour, size, row, column) for form, colour in pairs)
        yield Scene(things, int(rng.integers(2**31)), "train")


def _scene(rng: np.random.Generator, split: Split, count: int) -> Scene:
    while True:
        colours = rng.permutation(len(COLOURS))[:count]
        shapes, digits = rng.permutation(len(SHAPES)), rng.permutation(len(DIGITS))
        as_digit = rng.random(count) < DIGIT_SHARE
        quadrants = rng.permutation(4)[:count]
        things = tuple(
            Thing(
                form=DIGITS[digits[i]] if as_digit[i] else SHAPES[shapes[i]],
                colour=COLOURS[colours[i]],
                # Small handwriting is not legible at this resolution: digits are always large.
                size=SIZES[1] if as_digit[i] else SIZES[rng.integers(2)],
                row=ROWS[quadrants[i] // 2],
                column=COLUMNS[quadrants[i] % 2],
            )
            for i in range(count)
        )
        if any(held_out(t.form, t.colour) for t in things) == (split == "test"):
            return Scene(things, int(rng.integers(2**31)), split)
