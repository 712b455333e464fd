"""Concepts to probe for: balanced images, with captions that name the concept or what decides a fact."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from vlalign_utils.data.items import Split
from vlalign_utils.data.paired import Pair
from vlalign_utils.evidence.intervals import rng

POOL = 8  # subjects drawn for each one wanted, and
SPARE = 400  # as many more: enough of the rarest class


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What can be read off an image: one of `values`, which captions name (`said`) or not: then it is a fact.

    `draw` gives subjects, `image` shows one and `captions` say it, by wording; `value` is the one of `values`
    that a subject has (any other string: it has none). What `decides` gives of a subject is the type of a
    control task, and `types` says what that is. `words` name a value in a wording; `ask` is the request to
    describe the image.
    """

    name: str
    values: tuple[str, ...]
    value: Callable[[Any], str]
    decides: Callable[[Any], Any]
    types: str
    draw: Callable[[int, int, Split], Iterator[Any]]
    image: Callable[[Any], Image.Image]
    captions: Callable[[Any], dict[str, str]]
    words: Callable[[str, Any], tuple[str, ...]]
    ask: str
    said: bool = True


def concept_items(concept: Concept, n: int, seed: int = 0, split: Split = "train") -> list[Pair]:
    """`n` pairs labelled with one concept, all its values equally often (to within one).

    A world may have few captions of a concept: none is repeated before all that were drawn are used, and
    `same_caption` says which items share one. Raises ValueError where a value is too rare.
    """
    subjects = list(concept.draw(POOL * n + SPARE, seed, split))
    captions = [concept.captions(subject) for subject in subjects]
    seen: Counter[str] = Counter()
    times = []
    for caption in captions:
        times.append(seen[_letters(caption)])
        seen[_letters(caption)] += 1
    values = concept.values
    left = Counter({value: (n - i - 1) // len(values) + 1 for i, value in enumerate(values)})
    chosen = []
    for row in sorted(range(len(subjects)), key=times.__getitem__):  # stable: equals keep their order
        value = concept.value(subjects[row])
        if left[value] > 0:
            left[value] -= 1
            chosen.append(row)
    if len(chosen) < n:
        rare = ", ".join(value for value in values if left[value] > 0)
        raise ValueError(
            f"{n} items of concept {concept.name!r} cannot be balanced: too few pictures of {rare}"
        )
    return [
        Pair(
            subjects[row],
            concept.image(subjects[row]),
            captions[row],
            {concept.name: values.index(concept.value(subjects[row]))},
            concept.ask,
        )
        for row in sorted(chosen)
    ]


def _letters(caption: dict[str, str]) -> str:
    return "|".join("".join(sorted(text)) for text in caption.values())


def same_caption(pairs: Sequence[Pair]) -> Int[np.ndarray, " items"]:
    """A number for each item, the same where captions are: the groups that a split must not tear apart.

    Captions of the same letters in another order count as one: words share pieces, and the mean of a
    caption's pieces at layer 0 knows no order.
    """
    return np.unique([_letters(pair.caption) for pair in pairs], return_inverse=True)[1]


def control_types(concept: Concept, pairs: Sequence[Pair]) -> Int[np.ndarray, " items"]:
    """A number for each item, the same where what decides the concept is: types of `control_labels`."""
    return np.unique([str(concept.decides(pair.scene)) for pair in pairs], return_inverse=True)[1]


def concept_words(
    concept: Concept, pairs: Sequence[Pair], wordings: Sequence[str] = ("en",)
) -> list[tuple[str, ...]]:
    """The words that name each item's value in these wordings, each once."""
    named = [concept.values[pair.labels[concept.name]] for pair in pairs]
    return [
        tuple(dict.fromkeys(word for wording in wordings for word in concept.words(value, wording)))
        for value in named
    ]


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
