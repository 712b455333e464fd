"""Suite `captions`: the model's own description, attribute by attribute, and by CIDEr."""

from dataclasses import replace

import numpy as np

from vlalign_utils.caption_scores import agreement
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.language import LANGUAGES, Question, describe
from vlalign_utils.data.world import Split
from vlalign_utils.suites.protocol import Item, Suite, drawn, item_of


def _make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
    scenes, items = KINDS["scenes"], []
    for scene, other in zip(drawn("scenes", n, rng, split), drawn("scenes", n, rng, split), strict=True):
        language = LANGUAGES[rng.integers(2)]
        asked = Question("describe", describe(language), scenes.say(scene, language), ())
        # Chance is what the description of another picture would score.
        guess = agreement(scenes.say(other, language), asked.answer).mean
        items.append(replace(item_of(scenes, scene, asked), metric="caption", guess=guess))
    return items


SUITE = Suite(
    name="captions",
    mirrors="Flickr30K",
    asks="a description of all things with their attributes",
    metric="caption",
    vision_centric=False,
    make=_make,
)
