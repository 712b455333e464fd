"""Worlds that images show, each with its suites of items."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from vlalign_utils.data import concepts, drawn_concepts, minimal_pairs, pairs, suites
from vlalign_utils.data.concepts import Concept
from vlalign_utils.data.items import Item, Split, Suite
from vlalign_utils.data.paired import MinimalPair, Pair
from vlalign_utils.data.things import concepts as things_concepts
from vlalign_utils.data.things import minimal_pairs as things_minimal_pairs
from vlalign_utils.data.things import pairs as things_pairs
from vlalign_utils.data.things import suites as things_suites


@dataclass(frozen=True, kw_only=True)
class World:
    """What images are drawn from, what is said of them, and what is asked about them.

    `lenient` says that answers in a model's own words count (`data.lenient`), not one wording alone;
    `knowledge` is the suite that asks for facts that only training texts state, `scenes` one about what is
    seen in them, to stand beside handwriting. `probed` are the concepts that are asked for unless others are
    named, and `lens` those whose words lenses look for. `wordings` are the texts of a pair that chapters
    compare, with what they are called: the first is its caption, the second the one that concepts have, too,
    where there is one. `meanings` are those of them that say what the caption says with hardly a word in
    common. `caption_pairs` and `minimal_pairs` take a number, a seed and a split.
    """

    name: str
    suites: Mapping[str, Suite]
    lenient: bool
    knowledge: str
    scenes: str
    concepts: Mapping[str, Concept]
    probed: tuple[str, ...]
    lens: tuple[str, ...]
    wordings: Mapping[str, str]
    meanings: tuple[str, ...]
    caption_pairs: Callable[[int, int, Split], list[Pair]]
    minimal_pairs: Callable[[int, int, Split], list[MinimalPair]]

    def concept_items(self, concept: str, n: int, seed: int = 0, split: Split = "train") -> list[Pair]:
        """Balanced items of a concept, as `concepts.concept_items` draws them.

        Raises ValueError for an unknown concept and where a value is too rare.

        >>> items = WORLDS["drawn"].concept_items("colour", 8)
        >>> sorted(pair.labels["colour"] for pair in items)
        [0, 1, 2, 3, 4, 5, 6, 7]
        """
        return concepts.concept_items(self._concept(concept), n, seed, split)

    def control_types(self, concept: str, items: Sequence[Pair]) -> Int[np.ndarray, " items"]:
        """A number for each item of a concept, the same where what decides the concept is."""
        return concepts.control_types(self._concept(concept), items)

    def concept_words(
        self, concept: str, items: Sequence[Pair], wordings: Sequence[str] = ("en",)
    ) -> list[tuple[str, ...]]:
        """The words that name each item's value of a concept in these wordings."""
        return concepts.concept_words(self._concept(concept), items, wordings)

    def texts(self, items: Sequence[Pair]) -> dict[str, list[str]]:
        """The captions of pairs and the texts that mean the same, by what the wording is called.

        >>> list(WORLDS["things"].texts(WORLDS["things"].caption_pairs(2, 0, "test")))
        ['caption', 'description', 'association']
        """
        chosen = (next(iter(self.wordings)), *self.meanings)
        return {self.wordings[one]: [pair.caption[one] for pair in items] for one in chosen}

    def _concept(self, name: str) -> Concept:
        if name not in self.concepts:
            known = ", ".join(self.concepts)
            raise ValueError(f"there is no concept {name!r} in the world {self.name!r}; there are {known}")
        return self.concepts[name]


WORLDS = {
    world.name: world
    for world in (
        # shapes in colours, bars, words and handwriting, in two plain languages
        World(
            name="drawn",
            suites=suites.SUITES,
            lenient=False,
            knowledge="knowledge",
            scenes="attributes",
            concepts=drawn_concepts.CONCEPTS,
            probed=("colour", "form", "size", "position", "count", "digit", "word", "kind", "owner"),
            lens=("form", "colour"),
            wordings={"en": "English", "it": "Italian"},
            meanings=("it",),  # word for word: alike as bags of words, too
            caption_pairs=pairs.caption_pairs,
            minimal_pairs=minimal_pairs.minimal_pairs,
        ),
        # real things in several drawing styles, in everyday English
        World(
            name="things",
            suites=things_suites.SUITES,
            lenient=True,
            knowledge="kind",
            scenes="relations",
            concepts=things_concepts.CONCEPTS,
            probed=tuple(things_concepts.CONCEPTS),
            lens=("name", "kind"),
            wordings={
                "en": "caption",
                "described": "description",
                "associated": "association",
                "it": "Italian names",
            },
            meanings=("described", "associated"),
            caption_pairs=things_pairs.caption_pairs,
            minimal_pairs=things_minimal_pairs.minimal_pairs,
        ),
    )
}


def load_suite(name: str, n: int, seed: int = 0, split: Split = "test", world: str = "drawn") -> list[Item]:
    """Draw `n` items of a suite; the same arguments always give the same items.

    Args:
        name: a suite of the world, such as "attributes" of the drawn one or "naming" of the things.
        n: number of items.
        seed: of the draw; each suite has a stream of its own.
        split: "test" for held-out items, "train" for those that models may be tuned on.
        world: a key of `WORLDS`.

    Raises ValueError for an unknown world or suite, or a number below one.

    >>> from vlalign_utils import load_suite
    >>> item = load_suite("attributes", 1)[0]
    >>> item.answer in item.choices, item.image.size
    (True, (48, 48))
    """
    if world not in WORLDS:
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}")
    known = WORLDS[world].suites
    if name not in known:
        raise ValueError(f"there is no suite {name!r} in the world {world!r}; there are {', '.join(known)}")
    if n < 1:
        raise ValueError(f"n is {n}; a suite needs at least one item")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever other suites there are
    return known[name].make(n, rng, split)
