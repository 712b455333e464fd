"""Suites of items: one module a suite, and this registry. A new suite is its file and its name here.

Every suite is seeded and held out: its scenes show form-colour combinations, its charts colours at heights,
its signs words in inks, and its digits handwriting, that no training image shows.
"""

import zlib

import numpy as np

from vlalign_utils.data.scenes import Split
from vlalign_utils.data.suites import (
    attributes,
    captions,
    charts,
    compositional,
    counting,
    digits,
    existence,
    knowledge,
    reading,
    text,
)
from vlalign_utils.data.suites.protocol import Item, Metric, Suite

__all__ = ["SUITES", "Item", "Metric", "Suite", "load_suite"]

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (
        attributes,
        existence,
        counting,
        digits,
        charts,
        reading,
        knowledge,
        compositional,
        captions,
        text,
    )
}


def load_suite(name: str, n: int, seed: int = 0, split: Split = "test") -> list[Item]:
    """Draw `n` items of a suite; the same arguments always give the same items.

    Args:
        name: a key of `SUITES`, such as "attributes".
        n: number of items.
        seed: of the draw; each suite has a stream of its own.
        split: "test" for held-out items, "train" for those that models may be tuned on.

    Raises ValueError for an unknown suite or a number below one.

    >>> from vlalign_utils import load_suite
    >>> item = load_suite("attributes", 1)[0]
    >>> item.answer in item.choices, item.image.size
    (True, (48, 48))
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    if n < 1:
        raise ValueError(f"n is {n}; a suite needs at least one item")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever other suites there are
    return SUITES[name].make(n, rng, split)
