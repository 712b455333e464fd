"""Suites of the world of things: one module a suite, and this registry. A new one is a file and a name here.

Every suite is seeded, and no image of training comes again. What is held out differs: `unseen` shows things,
`existence`, `counting`, `relations` and `compositional` combinations or numbers of things, `reading` and
`charts` inks and months, `digits` handwriting that no training image shows. A group of `naming` shows a
style, and one of `kind` asks a question, that training never has. The other group of each, `languages`, and
captions of one thing show trained things in trained styles, anew in place and background alone.
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
