"""Suite `text`: text-only versions of the suites with answers, whose questions are asked about captions."""

import numpy as np

from vlalign_utils.data.items import Item, Split, Suite
from vlalign_utils.data.things.suites import (
    charts,
    counting,
    digits,
    existence,
    kind,
    naming,
    reading,
    relations,
)

ABOUT = {
    module.SUITE.name: module.ask
    for module in (naming, existence, counting, relations, kind, reading, charts, digits)
}


def _make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
    shares = [(n + i) // len(ABOUT) for i in range(len(ABOUT))]
    items = [
        asked.item(illustrated=False).caption_version()
        for ask, share in zip(ABOUT.values(), shares, strict=True)
        if share
        for asked in ask(share, rng, split)
    ]
    return [items[i] for i in rng.permutation(n)]


SUITE = Suite(
    name="text",
    mirrors="language-only benchmarks",
    asks="the questions of the suites with answers, about a caption instead of an image",
    metric="answer",
    vision_centric=False,
    make=_make,
)
