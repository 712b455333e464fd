"""Concepts to probe for: balanced pictures, with captions that name the concept or what decides a fact."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from vlalign_utils.data.kinds import KINDS as PICTURES
from vlalign_utils.data.language import LANGUAGES, PLACES, Language, attribute, refer, word
from vlalign_utils.data.pairs import CONCEPTS as ATTRIBUTES
from vlalign_utils.data.pairs import Pair
from vlalign_utils.data.scenes import (
    DIGITS,
    KINDS,
    MAX_THINGS,
    OWNERS,
    SIZES,
    Scene,
    Split,
    Thing,
    scenes,
)
from vlalign_utils.data.signs import WORDS, signs
from vlalign_utils.evidence.intervals import rng

COUNTS = DIGITS[1 : MAX_THINGS + 1]
POOL = 8  # subjects drawn for each one wanted, and
SPARE = 400  # as many more: enough of the rarest class, a digit among scenes
_ONE_THING = partial(scenes, min_things=1, max_things=1)


@dataclass(frozen=True)
class Concept:
    """What can be read off a picture: one of `values` (English words, a sign's as it is written).

    `draw` gives subjects of picture kind `kind`, `value` the one of `values` that a subject has (any other
    string: it has none), and `decides` what the value depends on: the type of a control task.
    """

    values: tuple[str, ...]
    value: Callable[[Any], str]
    decides: Callable[[Any], Any]
    kind: str = "scenes"
    draw: Callable[[int, int, Split], Iterator[Any]] = _ONE_THING


def _first(read: Callable[[Thing], Any]) -> Callable[[Scene], Any]:
    return lambda scene: read(scene.things[0])


def _among_shapes(read: Callable[[Scene], str]) -> Callable[[Scene], str]:
    """No value where the first thing is a digit: digits are always large, and named by number words."""
    return lambda scene: "" if scene.things[0].is_digit else read(scene)


_combination = _first(attrgetter("form", "colour"))
_KNOWN = {
    name: Concept(values, _first(attrgetter(name)), _combination) for name, values in ATTRIBUTES.items()
}
CONCEPTS: dict[str, Concept] = _KNOWN | {
    "size": Concept(SIZES, _among_shapes(_first(attrgetter("size"))), _combination),
    "digit": Concept(DIGITS, _first(attrgetter("form")), _combination),
    "position": Concept(PLACES, _first(lambda thing: attribute(thing, "place")), _combination),
    # Facts: no picture shows them and no caption says them.
    "kind": Concept(KINDS, _first(attrgetter("kind")), _first(attrgetter("form"))),
    "owner": Concept(OWNERS, _first(attrgetter("owner")), _first(attrgetter("colour"))),
    "count": Concept(
        COUNTS, _among_shapes(lambda scene: COUNTS[len(scene.things) - 1]), _combination, draw=scenes
    ),
    "word": Concept(WORDS, attrgetter("text"), attrgetter("text", "ink"), "signs", signs),
}


def concept_items(concept: str, n: int, seed: int = 0, split: Split = "train") -> list[Pair]:
    """`n` pairs labelled with one concept, all its values equally often (to within one).

    The world has few captions of some concepts: none is repeated before all that were drawn are used, and
    `same_caption` says which items share one. Captions name the concept as words: with `count` a number word
    stands before the first thing alone, for a list would give the number away by its length. In
    the test split a form has one colour only, so that one tells the other. Raises ValueError for an unknown
    concept and where a value is too rare.
    """
    about = _concept(concept)
    subjects = list(about.draw(POOL * n + SPARE, seed, split))
    captions = [_captions(concept, subject) for subject in subjects]
    seen: Counter[str] = Counter()
    times = []
    for caption in captions:
        times.append(seen[_letters(caption)])
        seen[_letters(caption)] += 1
    left = Counter({value: (n - i - 1) // len(about.values) + 1 for i, value in enumerate(about.values)})
    chosen = []
    for row in sorted(range(len(subjects)), key=times.__getitem__):  # stable: equals keep their order
        value = about.value(subjects[row])
        if left[value] > 0:
            left[value] -= 1
            chosen.append(row)
    if len(chosen) < n:
        rare = ", ".join(value for value in about.values if left[value] > 0)
        raise ValueError(f"{n} items of concept {concept!r} cannot be balanced: too few pictures of {rare}")
    picture = PICTURES[about.kind].render
    return [
        Pair(
            subjects[row],
            Image.fromarray(picture(subjects[row])),
            captions[row],
            {concept: about.values.index(about.value(subjects[row]))},
        )
        for row in sorted(chosen)
    ]


def _concept(name: str) -> Concept:
    if name not in CONCEPTS:
        raise ValueError(f"there is no concept {name!r}; there are {', '.join(CONCEPTS)}")
    return CONCEPTS[name]


def _captions(concept: str, subject: Any) -> dict[str, str]:
    say = PICTURES[CONCEPTS[concept].kind].say
    if concept != "count":
        return {language: say(subject, language) for language in LANGUAGES}
    one = Scene(subject.things[:1], subject.seed, subject.split)
    number = COUNTS[len(subject.things) - 1]
    return {
        language: f"{word(number, language)} {refer(language, 'things')}, {say(one, language)}"
        for language in LANGUAGES
    }


def _letters(caption: dict[str, str]) -> str:
    return "|".join("".join(sorted(caption[language])) for language in LANGUAGES)


def same_caption(pairs: Sequence[Pair]) -> Int[np.ndarray, " items"]:
    """A number for each item, the same where captions are: the groups that a split must not tear apart.

    Captions of the same letters in another order count as one, as in `pairs`.
    """
    return np.unique([_letters(pair.caption) for pair in pairs], return_inverse=True)[1]


def control_types(concept: str, pairs: Sequence[Pair]) -> Int[np.ndarray, " items"]:
    """A number for each item, the same where what decides the concept is: types of `control_labels`.

    For attributes that is the combination of form and colour, for a word the word and its ink, and for a
    fact the form or the colour itself: the control is another fact about it, which no text ever taught.
    """
    decides = _concept(concept).decides
    return np.unique([str(decides(pair.scene)) for pair in pairs], return_inverse=True)[1]


def concept_words(
    concept: str, pairs: Sequence[Pair], languages: Sequence[Language] = LANGUAGES
) -> list[tuple[str, ...]]:
    """The words that name each item's value in these languages; a sign's word is what is written there."""
    values = _concept(concept).values
    named = [values[pair.labels[concept]] for pair in pairs]
    if concept == "word":
        return [(value,) for value in named]
    return [tuple(w for language in languages for w in word(value, language).split()) for value in named]


def other_words(words: Sequence[tuple[str, ...]], seed: int = 0) -> list[tuple[str, ...]]:
    """The control: for each item the words of another one, at random among those that share no word with it.

    Raises ValueError when an item has no such other.
    """
    stream = rng(seed, "words of another item")
    found = []
    for i, own in enumerate(words):
        others = [other for other in words if not set(own) & set(other)]
        if not others:
            raise ValueError(f"every item shares a word with item {i}, {' '.join(own)}: there is no control")
        found.append(others[stream.integers(len(others))])
    return found
