"""Concepts of the drawn world: attributes and number of things, digits, words on signs, and two facts."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from PIL import Image

from vlalign_utils.data.concepts import Concept
from vlalign_utils.data.kinds import KINDS as PICTURES
from vlalign_utils.data.language import LANGUAGES, PLACES, attribute, describe, refer, word
from vlalign_utils.data.pairs import CONCEPTS as ATTRIBUTES
from vlalign_utils.data.scenes import (
    DIGITS,
    KINDS,
    MAX_THINGS,
    OWNERS,
    SIZES,
    Scene,
    Thing,
    scenes,
)
from vlalign_utils.data.signs import WORDS, signs

COUNTS = DIGITS[1 : MAX_THINGS + 1]
COMBINATION = "form and colour"
_ONE_THING = partial(scenes, min_things=1, max_things=1)


def _first(read: Callable[[Thing], Any]) -> Callable[[Scene], Any]:
    return lambda scene: read(scene.things[0])


def _among_shapes(read: Callable[[Scene], str]) -> Callable[[Scene], str]:
    """No value where the first thing is a digit: digits are always large, and named by number words."""
    return lambda scene: "" if scene.things[0].is_digit else read(scene)


def _captions(kind: str, subject: Any) -> dict[str, str]:
    return {language: PICTURES[kind].say(subject, language) for language in LANGUAGES}


def _counted(scene: Scene) -> dict[str, str]:
    """A number word before the first thing alone: a list would give the number away by its length."""
    one = Scene(scene.things[:1], scene.seed, scene.split)
    number = COUNTS[len(scene.things) - 1]
    said = _captions("scenes", one)
    return {
        language: f"{word(number, language)} {refer(language, 'things')}, {said[language]}"
        for language in LANGUAGES
    }


def _image(kind: str, subject: Any) -> Image.Image:
    return Image.fromarray(PICTURES[kind].render(subject))


# Of one thing. In the test split a form has one colour only, so that one tells the other.
_scene = partial(
    Concept,
    decides=_first(attrgetter("form", "colour")),
    types=COMBINATION,
    draw=_ONE_THING,
    image=partial(_image, "scenes"),
    captions=partial(_captions, "scenes"),
    words=lambda value, language: tuple(word(value, language).split()),
    ask=describe("en"),
)
CONCEPTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        *(
            _scene(name=name, values=values, value=_first(attrgetter(name)))
            for name, values in ATTRIBUTES.items()
            if name != "size"
        ),
        _scene(name="size", values=SIZES, value=_among_shapes(_first(attrgetter("size")))),
        _scene(name="digit", values=DIGITS, value=_first(attrgetter("form"))),
        _scene(name="position", values=PLACES, value=_first(lambda thing: attribute(thing, "place"))),
        # Facts: no picture shows them and no caption says them. The control is another fact about what
        # decides them, which no text ever taught.
        _scene(
            name="kind",
            values=KINDS,
            value=_first(attrgetter("kind")),
            decides=_first(attrgetter("form")),
            types="form",
            said=False,
        ),
        _scene(
            name="owner",
            values=OWNERS,
            value=_first(attrgetter("owner")),
            decides=_first(attrgetter("colour")),
            types="colour",
            said=False,
        ),
        _scene(
            name="count",
            values=COUNTS,
            value=_among_shapes(lambda scene: COUNTS[len(scene.things) - 1]),
            draw=scenes,
            captions=_counted,
        ),
        Concept(
            name="word",
            values=WORDS,
            value=attrgetter("text"),
            decides=attrgetter("text", "ink"),
            types="word and ink",
            draw=signs,
            image=partial(_image, "signs"),
            captions=partial(_captions, "signs"),
            words=lambda value, language: (value,),  # as it is written, in whichever language
            ask=describe("en"),
        ),
    )
}
