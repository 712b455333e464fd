"""Suites of the world of things: one module a suite, and this registry. A new one is a file and a name here.

Every suite is seeded and held out: its images show a style, things, combinations of things, inks, months or
handwriting that no training image shows, or ask what training never asks about them.
"""

from vlalign_utils.data.items import Suite
from vlalign_utils.data.things.suites import (
    captions,
    charts,
    compositional,
    counting,
    digits,
    existence,
    kind,
    languages,
    naming,
    reading,
    relations,
    text,
    unseen,
)

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (
        naming,
        unseen,
        existence,
        counting,
        relations,
        reading,
        charts,
        digits,
        kind,
        languages,
        compositional,
        captions,
        text,
    )
}
