"""Suite `text`: the questions of the suites with answers, asked about captions, and bare facts."""

import numpy as np

from vlalign_utils.data.items import Item, Suite
from vlalign_utils.data.language import LANGUAGES, ask_fact
from vlalign_utils.data.scenes import Split
from vlalign_utils.data.suites import (
    attributes,
    charts,
    counting,
    digits,
    existence,
    knowledge,
    reading,
)

ABOUT = (attributes, existence, counting, charts, reading, digits, knowledge)
FACTS = 0.1  # of the items


def _make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
    bare = round(FACTS * n)
    shares = [(n - bare + i) // len(ABOUT) for i in range(len(ABOUT))]
    items = [
        item.caption_version()
        for module, share in zip(ABOUT, shares, strict=True)
        if share
        for item in module.SUITE.make(share, rng, split)
    ]
    for _ in range(bare):
        fact = ask_fact(LANGUAGES[rng.integers(2)], rng)
        items.append(Item(None, fact.text, fact.answer, fact.choices, fact.topic, ""))
    return [items[i] for i in rng.permutation(n)]


SUITE = Suite(
    name="text",
    mirrors="MMLU-Pro",
    asks="the questions of the suites with answers, about a caption instead of a picture, and bare facts",
    metric="answer",
    vision_centric=False,
    make=_make,
)
