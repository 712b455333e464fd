"""What may be asked of a training scene: every kind of question that has one right answer for it."""

from collections.abc import Callable

import numpy as np

from vlalign_utils.data.things.questions import (
    Question,
    absent,
    ask_beside,
    ask_either,
    ask_exists,
    ask_fits,
    ask_kind,
    ask_language,
    ask_name,
    ask_number,
    ask_place,
    ask_related,
)
from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.splits import kind_asked
from vlalign_utils.data.things.table import LANGUAGES, Thing
from vlalign_utils.data.things.words import PLACES

FEW = 0.3  # how often the number is asked for where there is one of each: "one" would be the answer too often
LINE: tuple[Callable[[Scene, np.random.Generator], Question], ...]
LINE = (ask_place, ask_beside, ask_related, ask_either, ask_fits)


def questions_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about a scene of training things, one or two of each kind that fits it.

    The kind is asked for only where training may (`splits.kind_asked`).
    """
    shown = list(dict.fromkeys(scene.things))
    one = shown[rng.integers(len(shown))]
    exists, none = ask_exists(one, True, rng), ask_exists(absent(shown, rng), False, rng)
    asked: list[Question | None]
    if len(scene.placed) == 1:
        language = LANGUAGES[rng.integers(len(LANGUAGES))]
        asked = [exists, none, ask_name(one, rng), ask_name(one, rng), ask_language(one, language, rng)]
        asked += [ask_kind(one, rng) if kind_asked(one) else None]
    elif (scene.arrangement, len(scene.placed)) in PLACES:
        asked = [exists if rng.random() < 0.5 else none, _kind_at(scene, rng)]
        asked += [ask(scene, rng) for ask in LINE]
    else:
        asked = [exists, none]
    countable = all(thing.number == "one" for thing in shown)
    if len(scene.placed) > len(shown):
        asked += [_number_of(scene, scene.things[0], rng), _number_of(scene, shown[-1], rng)]
    elif countable and rng.random() < FEW:
        asked += [_number_of(scene, one, rng)]
    if countable and (len(scene.placed) > 1 or rng.random() < FEW):
        asked += [ask_number(None, len(scene.placed), rng)]
    return [question for question in asked if question is not None]


def _number_of(scene: Scene, thing: Thing, rng: np.random.Generator) -> Question:
    return ask_number(thing, scene.things.count(thing), rng)


def _kind_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    places = PLACES[scene.arrangement, len(scene.placed)]
    at = int(rng.integers(len(places)))
    thing = scene.things[at]
    return ask_kind(thing, rng, f"the thing {places[at]}") if kind_asked(thing) else None
