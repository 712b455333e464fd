"""Questions about scenes of things, in plain English and several phrasings, with short answers.

An answer is what an instructed model would say: "A squid", "Yes", "Two", "Left". A name follows its article:
behind a space it is nearly always one token of a language model, without one it seldom is. Captions are
sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.relations import Relation, relations
from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.splits import held_out_pair, trained_things
from vlalign_utils.data.things.table import LANGUAGES, Thing, things
from vlalign_utils.data.things.words import (
    NUMBERS,
    PLACES,
    capital,
    caption,
    kind_phrase,
    listed,
    sentence,
    verb,
    with_article,
)

LANGUAGE_NAMES = dict(zip(LANGUAGES, ("German", "French", "Spanish", "Italian"), strict=True))
PHRASINGS = {
    "name": ("What is this?", "What is in the image?", "What is shown here?", "What can you see?"),
    "plural name": ("What are these?", "What is in the image?", "What is shown here?", "What can you see?"),
    "exists": (
        "{Are} there {x} in the image?",
        "{Are} there {x}?",
        "Does the image show {x}?",
        "Can you see {x}?",
    ),
    "number": ("How many {xs} are there?", "How many {xs} are in the image?", "How many {xs} can you see?"),
    "place": ("What is {place}?", "What is {place} of the image?", "Which thing is {place}?"),
    "beside": (
        "What is {relation} {x}?",
        "Which thing is {relation} {x}?",
        "What can you see {relation} {x}?",
    ),
    "related": ("{Are} {x} {relation} {y}?",),
    "either": ("{Are} {x} {relation} or {opposite} {y}?",),
    "kind": ("What kind of thing is {this}?", "What sort of thing is {this}?", "What is {this} a kind of?"),
    "caption": ("Describe the image.", "Write a caption for the image.", "Caption the image."),
    "language": ("What is this in {language}?", "What is the {language} word for this?"),
    "fits": ("Which description fits the image: {one} or {other}?", "Which is right: {one} or {other}?"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer; `topic` is one of the phrasings' names, or what else it asks for."""

    topic: str
    prompt: str
    answer: str


def phrased(topic: str, rng: np.random.Generator, answer: str, **words: str) -> Question:
    """A question in one of its topic's phrasings."""
    options = PHRASINGS[topic]
    return Question(topic, options[rng.integers(len(options))].format(**words), answer)


def ask_name(thing: Thing, rng: np.random.Generator) -> Question:
    """Ask what the only thing of an image is."""
    topic = "plural name" if thing.number == "plural" else "name"
    return phrased(topic, rng, capital(with_article(thing)))


def ask_exists(thing: Thing, shown: bool, rng: np.random.Generator) -> Question:
    """Ask whether the image shows a thing."""
    are = "Are" if thing.number == "plural" else "Is"
    return phrased("exists", rng, "Yes" if shown else "No", Are=are, x=with_article(thing))


def ask_number(thing: Thing | None, number: int, rng: np.random.Generator) -> Question:
    """Ask how many of a thing there are, or how many things in all; there are at most four."""
    words = {"xs": "things" if thing is None else thing.plural}
    return phrased("number", rng, capital(NUMBERS[number]) if number else "None", **words)


def ask_kind(thing: Thing, rng: np.random.Generator, this: str = "this") -> Question:
    """Ask for the kind of a thing; `this` says which one, such as "the thing on the left"."""
    return phrased("kind", rng, capital(kind_phrase(thing.kind)), this=this)


def ask_language(thing: Thing, language: str, rng: np.random.Generator) -> Question:
    """Ask for a name in another language."""
    return phrased("language", rng, thing.name_in(language), language=LANGUAGE_NAMES[language])


def ask_caption(caption: str, rng: np.random.Generator) -> Question:
    """Ask for the caption of an image."""
    return phrased("caption", rng, caption)


def ask_place(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask what is at one of the places of a row or column."""
    places = PLACES[scene.arrangement, len(scene.placed)]
    at = int(rng.integers(len(places)))
    return phrased("place", rng, capital(with_article(scene.things[at])), place=places[at])


def ask_beside(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask what is on one side of a thing, where that is one thing only."""
    things = scene.things
    options = [r for r in relations(scene) if r.only]
    relation = options[rng.integers(len(options))]
    words = {"relation": relation.words, "x": f"the {things[relation.landmark].name}"}
    return phrased("beside", rng, capital(with_article(things[relation.thing])), **words)


def ask_related(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether a thing is on one side of another: as often it is as not."""
    found = _any_relation(scene, rng)
    right = bool(rng.random() < 0.5)
    words = _sides(scene, found) | {"relation": found.words if right else found.opposite}
    return phrased("related", rng, "Yes" if right else "No", **words)


def ask_either(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask on which of two sides of another a thing is."""
    found = _any_relation(scene, rng)
    words = _sides(scene, found)
    first, second = (found.words, found.opposite) if rng.random() < 0.5 else (found.opposite, found.words)
    return phrased("either", rng, capital(found.short), **words, relation=first, opposite=second)


def ask_fits(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask which of two captions is right: the other one has the same words, with two things exchanged."""
    things = list(scene.things)
    i, j = (int(k) for k in rng.permutation(len(things))[:2])
    things[i], things[j] = things[j], things[i]
    places = PLACES[scene.arrangement, len(things)]
    right = caption(scene)
    wrong = sentence(listed([f"{with_article(t)} {p}" for t, p in zip(things, places, strict=True)]))
    one, other = (right, wrong) if rng.random() < 0.5 else (wrong, right)
    return phrased("fits", rng, right, one=_inside(one), other=_inside(other))


def absent(shown: Sequence[Thing], rng: np.random.Generator, among: Sequence[Thing] | None = None) -> Thing:
    """A thing that the image does not show: any, one of the same kind, or one that goes with the same words.

    One that overlaps with a shown one, or is held out beside it, is never taken: the latter would be asked
    about in training with no other answer than "No". `among` are by default the things of training.
    """
    among = trained_things() if among is None else among
    never = frozenset().union(*(_never_beside(own) for own in shown))
    possible = [t for t in among if t.index not in never]
    near = shown[int(rng.integers(len(shown)))]
    same_kind = [t for t in possible if t.kind == near.kind]
    related = [t for t in possible if set(t.keywords) & set(near.keywords)]
    options = (possible, same_kind, related)[rng.integers(3)] or possible
    return options[int(rng.integers(len(options)))]


@cache
def _never_beside(thing: Thing) -> frozenset[int]:
    return frozenset(t.index for t in things() if overlap(t, thing) or held_out_pair(t, thing))


def _any_relation(scene: Scene, rng: np.random.Generator) -> Relation:
    found = relations(scene)
    return found[rng.integers(len(found))]


def _sides(scene: Scene, relation: Relation) -> dict[str, str]:
    thing, landmark = scene.things[relation.thing], scene.things[relation.landmark]
    return {"Are": verb(thing).capitalize(), "x": f"the {thing.name}", "y": f"the {landmark.name}"}


def _inside(caption: str) -> str:
    """The caption as it stands within a sentence."""
    return caption[0].lower() + caption[1:].removesuffix(".")
