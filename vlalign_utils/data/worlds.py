"""Worlds that images show, each with its suites of items."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlalign_utils.data import suites
from vlalign_utils.data.items import Item, Split, Suite
from vlalign_utils.data.things import suites as things_suites


@dataclass(frozen=True)
class World:
    """What images are drawn from, and what is asked about them.

    `lenient` says that answers in a model's own words count (`data.lenient`), not one wording alone;
    `knowledge` is the suite that asks for facts that only training texts state.
    """

    name: str
    suites: Mapping[str, Suite]
    lenient: bool
    knowledge: str


WORLDS = {
    world.name: world
    for world in (
        # shapes in colours, bars, words and handwriting, in two plain languages
        World("drawn", suites.SUITES, lenient=False, knowledge="knowledge"),
        # real things in several drawing styles, in everyday English
        World("things", things_suites.SUITES, lenient=True, knowledge="kind"),
    )
}


def load_suite(name: str, n: int, seed: int = 0, split: Split = "test", world: str = "drawn") -> list[Item]:
    """Draw `n` items of a suite; the same arguments always give the same items.

    Args:
        name: a suite of the world, such as "attributes" of the drawn one or "naming" of the things.
        n: number of items.
        seed: of the draw; each suite has a stream of its own.
        split: "test" for held-out items, "train" for those that models may be tuned on.
        world: a key of `WORLDS`.

    Raises ValueError for an unknown world or suite, or a number below one.

    >>> from vlalign_utils import load_suite
    >>> item = load_suite("attributes", 1)[0]
    >>> item.answer in item.choices, item.image.size
    (True, (48, 48))
    """
    if world not in WORLDS:
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}")
    known = WORLDS[world].suites
    if name not in known:
        raise ValueError(f"there is no suite {name!r} in the world {world!r}; there are {', '.join(known)}")
    if n < 1:
        raise ValueError(f"n is {n}; a suite needs at least one item")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever other suites there are
    return known[name].make(n, rng, split)
