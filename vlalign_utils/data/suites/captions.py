"""Suite `captions`: the model's own description, attribute by attribute, and by CIDEr."""

from dataclasses import replace
from functools import cache

import numpy as np

from vlalign_utils.data.caption_scores import agreement
from vlalign_utils.data.items import Item, Suite
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.language import LANGUAGES, Question, describe
from vlalign_utils.data.scenes import Split
from vlalign_utils.data.suites.about import drawn, item_of

PAIRS = 400  # of pictures, by which chance is found


@cache
def _chance() -> float:
    """What the description of another picture scores, on average."""
    say = KINDS["scenes"].say
    one, two = (KINDS["scenes"].draw(PAIRS, seed, "test") for seed in (0, 1))
    return float(np.mean([agreement(say(a, "en"), say(b, "en")).mean for a, b in zip(one, two, strict=True)]))


def _make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
    scenes, items = KINDS["scenes"], []
    for scene in drawn("scenes", n, rng, split):
        language = LANGUAGES[rng.integers(2)]
        asked = Question("describe", describe(language), scenes.say(scene, language), ())
        items.append(replace(item_of(scenes, scene, asked), metric="caption", guess=_chance()))
    return items


SUITE = Suite(
    name="captions",
    mirrors="Flickr30K",
    asks="a description of all things with their attributes",
    metric="caption",
    vision_centric=False,
    make=_make,
)
