"""What is held out from every training stage: a style, things, combinations, and the question for a kind.

All is decided by hashes of names, never by order or chance, so that the splits stay disjoint whatever is
drawn, and adding a thing moves no other.
"""

import hashlib
from collections.abc import Iterable
from functools import cache

from vlalign_utils.data.things.sheets import STYLES
from vlalign_utils.data.things.table import Thing, things

HELD_OUT_STYLE = "twitter"
TRAINED_STYLES = tuple(style for style in STYLES if style != HELD_OUT_STYLE)
HELD_OUT_SHARE = 0.1  # of things, of pairs of things, and of numbers of a thing
KIND_ASKED_SHARE = 0.5  # of trained things


@cache
def held_out(thing: Thing) -> bool:
    """Whether no training stage ever shows or names the thing: a tenth of all."""
    return _fraction("thing", thing.name) < HELD_OUT_SHARE


@cache
def trained_things() -> tuple[Thing, ...]:
    """The things of training."""
    return tuple(thing for thing in things() if not held_out(thing))


@cache
def held_out_things() -> tuple[Thing, ...]:
    """The things that no training stage shows."""
    return tuple(thing for thing in things() if held_out(thing))


def held_out_pair(a: Thing, b: Thing) -> bool:
    """Whether no training scene shows these two things together: a tenth of all pairs, in either order."""
    return _fraction("pair", *sorted((a.name, b.name))) < HELD_OUT_SHARE


def held_out_number(thing: Thing, number: int) -> bool:
    """Whether no training scene shows this many of the thing: a tenth of the numbers from two."""
    return number > 1 and _fraction("number", thing.name, str(number)) < HELD_OUT_SHARE


def kind_asked(thing: Thing) -> bool:
    """Whether training may ask for the kind of the thing: half of the trained things."""
    return not held_out(thing) and _fraction("kind", thing.name) < KIND_ASKED_SHARE


def shows_held_out(shown: Iterable[Thing], styles: Iterable[str] = ()) -> bool:
    """Whether a scene with these things, one entry for each drawing, shows what training must not."""
    shown = list(shown)
    different = list(dict.fromkeys(shown))
    return (
        HELD_OUT_STYLE in styles
        or any(held_out(thing) or held_out_number(thing, shown.count(thing)) for thing in different)
        or any(held_out_pair(a, b) for i, a in enumerate(different) for b in different[:i])
    )


def _fraction(*words: str) -> float:
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
