"""Concepts of the world of things: names, kinds, places, numbers, handwritten digits and words on signs."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import Any

import numpy as np
from PIL import Image

from vlalign_utils.data.concepts import Concept
from vlalign_utils.data.items import Split
from vlalign_utils.data.scenes import DIGITS
from vlalign_utils.data.things.handwriting import SHARES, WrittenDigit, page, written_digits
from vlalign_utils.data.things.pairs import ASK
from vlalign_utils.data.things.scenes import Arrangement, Scene, place
from vlalign_utils.data.things.sheets import STYLES
from vlalign_utils.data.things.splits import TRAINED_STYLES, shows_held_out, trained_things
from vlalign_utils.data.things.stems import shares_stem, words_of
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.table import Thing, by_name
from vlalign_utils.data.things.wordings import described
from vlalign_utils.data.things.words import NUMBERS, caption, counted, sentence, with_article
from vlalign_utils.data.things.written_questions import sign_caption
from vlalign_utils.data.things.written_signs import WrittenSign, written_signs

# Things of training of many kinds, each named by one word.
NAMES = (
    "dog",
    "horse",
    "elephant",
    "owl",
    "butterfly",
    "octopus",
    "snail",
    "bicycle",
    "helicopter",
    "car",
    "house",
    "banana",
    "carrot",
    "guitar",
    "hammer",
    "chair",
)
COMPANIONS = ("candle", "kite", "ladder", "crown", "tulip", "cactus", "drum", "spoon")
KINDS = ("mammal", "bird", "person", "vehicle", "clothing", "building", "tool", "food", "fruit", "vegetable")
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = NUMBERS[1:]
OTHERWISE = ("a lone", "a pair of", "a trio of", "a quartet of")  # numbers in other words
SIGNS = (
    "stop",
    "exit",
    "open",
    "closed",
    "cafe",
    "bar",
    "shop",
    "station",
    "hot",
    "cold",
    "dry",
    "slow",
    "fast",
    "free",
    "sugar",
    "map",
    "mail",
    "winter",
    "dinner",
    "office",
)
MANY = sum(SHARES) / 2  # share of an image's side from which a digit is large


def _words(value: str, wording: str) -> tuple[str, ...]:
    """English words alone: other wordings avoid them."""
    return tuple(value.split()) if wording == "en" else ()


def _scenes(
    n: int, seed: int, split: Split, choose: Callable[[np.random.Generator], tuple[list[Thing], Arrangement]]
) -> Iterator[Scene]:
    """Scenes of what `choose` draws; of several things, those that the split may show."""
    rng = np.random.default_rng([seed, 13])
    styles = TRAINED_STYLES if split == "train" else STYLES
    while n:
        shown, arrangement = choose(rng)
        scene = place(rng, split, shown, arrangement, styles=styles if len(shown) > 1 else TRAINED_STYLES)
        held_out = shows_held_out(shown, [placed.style for placed in scene.placed])
        if len(shown) == 1 or held_out == (split == "test"):
            n -= 1
            yield scene


def _any(pool: Sequence[Any], rng: np.random.Generator) -> Any:
    return pool[int(rng.integers(len(pool)))]


def _named(n: int, seed: int, split: Split) -> Iterator[Scene]:
    """A thing of NAMES beside a companion, on either side or above or below."""

    def choose(rng: np.random.Generator) -> tuple[list[Thing], Arrangement]:
        both = [by_name()[_any(NAMES, rng)], by_name()[_any(COMPANIONS, rng)]]
        return [both[i] for i in rng.permutation(2)], _any(("row", "column"), rng)

    return _scenes(n, seed, split, choose)


def _name(scene: Scene) -> str:
    return next(thing.name for thing in scene.things if thing.name in NAMES)


@cache
def of_kind(kind: str) -> tuple[Thing, ...]:
    """Things of training of a kind, without those whose names give it away."""
    return tuple(thing for thing in trained_things() if thing.kind == kind and not _says(thing, kind))


def _says(thing: Thing, kind: str) -> bool:
    words = [word for name in (thing.name, *thing.synonyms) for word in words_of(name)]
    return any(shares_stem(word, kind) for word in words)


def _of_kinds(n: int, seed: int, split: Split) -> Iterator[Scene]:
    return _scenes(n, seed, split, lambda rng: ([_any(of_kind(_any(KINDS, rng)), rng)], "alone"))


def _familiar(rng: np.random.Generator) -> Thing:
    return by_name()[_any(NAMES + COMPANIONS, rng)]


def _placed(n: int, seed: int, split: Split) -> Iterator[Scene]:
    return _scenes(n, seed, split, lambda rng: ([_familiar(rng)], "quadrants"))


def _place(scene: Scene) -> str:
    (placed,) = scene.placed
    return PLACES[2 * (placed.y > 0.5) + (placed.x > 0.5)]


def _at_place(scene: Scene) -> dict[str, str]:
    return {"en": sentence(f"{with_article(scene.things[0])} at the {_place(scene)}")}


def _repeated(n: int, seed: int, split: Split) -> Iterator[Scene]:
    return _scenes(
        n, seed, split, lambda rng: ([_familiar(rng)] * int(rng.integers(1, len(NUMBERS))), "quadrants")
    )


def _numbered(scene: Scene) -> dict[str, str]:
    thing, number = scene.things[0], len(scene.things)
    name = thing.name if number == 1 else thing.plural
    return {
        "en": sentence(counted(thing, number)),
        "described": sentence(f"{OTHERWISE[number - 1]} {name}"),
    }


def _look(digit: WrittenDigit) -> tuple[str, str, str]:
    """Value, size and what it is written with."""
    look = page(digit, about.SIDE)
    large = look.size > MANY * about.SIDE
    return str(digit.value), "large" if large else "small", "chalk" if look.chalk else "ink"


def _said(digit: WrittenDigit) -> dict[str, str]:
    value, size, medium = _look(digit)
    shade = "bright on dark" if medium == "chalk" else "dark on bright"
    return {
        "en": f"A {size} handwritten {value} in {medium}.",
        "described": sentence(f"{DIGITS[digit.value]}, {'big' if size == 'large' else 'little'}, {shade}"),
    }


def _sign(sign: WrittenSign) -> dict[str, str]:
    return {"en": f"{sign_caption(sign).removesuffix('.')} in {sign.ink}."}


def _first(scene: Scene) -> str:
    return scene.things[0].name


def _caption_and_description(scene: Scene) -> dict[str, str]:
    return {"en": caption(scene), "described": described(scene)}


def _image(subject: Any) -> Image.Image:
    return about.image_of(subject)


_concept = partial(Concept, image=_image, words=_words, ask=ASK)
CONCEPTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        _concept(
            name="name",
            values=NAMES,
            value=_name,
            decides=lambda scene: tuple(sorted(thing.name for thing in scene.things)),
            types="thing and the one beside it",
            draw=_named,
            captions=_caption_and_description,
        ),
        # A fact: no caption says it. Captions name the thing and no more, so that a probe is never tested on
        # a thing that it was fitted on.
        _concept(
            name="kind",
            values=KINDS,
            value=lambda scene: scene.things[0].kind,
            decides=_first,
            types="thing",
            draw=_of_kinds,
            captions=_caption_and_description,
            said=False,
        ),
        _concept(
            name="place",
            values=PLACES,
            value=_place,
            decides=_first,
            types="thing",
            draw=_placed,
            captions=_at_place,
        ),
        _concept(
            name="number",
            values=COUNTS,
            value=lambda scene: NUMBERS[len(scene.things)],
            decides=_first,
            types="thing",
            draw=_repeated,
            captions=_numbered,
        ),
        _concept(
            name="digit",
            values=tuple(str(value) for value in range(10)),
            value=lambda digit: str(digit.value),
            decides=lambda digit: _look(digit)[:2],
            types="digit and its size",
            # Handwriting that no training image shows, in either split.
            draw=lambda n, seed, split: written_digits(n, seed, "test"),
            captions=_said,
        ),
        _concept(
            name="word",
            values=SIGNS,
            value=attrgetter("word"),
            decides=attrgetter("word", "ink"),
            types="word and ink",
            draw=written_signs,
            captions=_sign,
        ),
    )
}
