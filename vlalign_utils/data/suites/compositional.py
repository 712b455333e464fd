"""Suite `compositional`: two captions of the same words, of which one is true."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from vlalign_utils.data.items import Item, Suite
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.language import LANGUAGES, Question, describe
from vlalign_utils.data.scenes import Scene, Split, held_out
from vlalign_utils.data.suites.about import drawn, item_of

SWAPPED = {"colour": ("colour",), "size": ("size",), "place": ("row", "column")}


def swaps(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Scenes in which two things have changed one attribute, with its name.

    Only those with as many held-out combinations as the scene itself has: text alone must not tell.
    """
    rare = sum(held_out(thing.form, thing.colour) for thing in scene.things)
    for i, j in combinations(range(len(scene.things)), 2):
        for name, fields in SWAPPED.items():
            things = list(scene.things)
            one, two = things[i], things[j]
            things[i] = replace(one, **{field: getattr(two, field) for field in fields})
            things[j] = replace(two, **{field: getattr(one, field) for field in fields})
            # A digit is always large.
            possible = all(t.size == "large" for t in things if t.is_digit)
            same = sum(held_out(thing.form, thing.colour) for thing in things) == rare
            if tuple(things) != scene.things and possible and same:
                yield name, replace(scene, things=tuple(things))


def _make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
    items: list[Item] = []
    scenes, say = KINDS["scenes"], KINDS["scenes"].say
    while len(items) < n:
        for scene in drawn("scenes", n, rng, split):
            language, found = LANGUAGES[rng.integers(2)], list(swaps(scene))
            if not found or len(items) == n:
                continue
            name, false = found[rng.integers(len(found))]
            choices = (say(scene, language), say(false, language))
            asked = Question(name, describe(language), choices[0], choices)
            items.append(replace(item_of(scenes, scene, asked), metric="choice"))
    return items


SUITE = Suite(
    name="compositional",
    mirrors="SugarCrepe",
    asks="which of two captions is true: two things have changed their colour, size or place",
    metric="choice",
    vision_centric=False,
    make=_make,
)
