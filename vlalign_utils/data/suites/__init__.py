"""Suites of the drawn world: one module a suite, and this registry. A new suite is a file and a name here.

Every suite is seeded and held out: its scenes show form-colour combinations, its charts colours at heights,
its signs words in inks, and its digits handwriting, that no training image shows.
"""

from vlalign_utils.data.items import Suite
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
