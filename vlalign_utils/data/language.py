"""Two surface languages for the same scenes: captions, questions and answers in English and Italian.

The wording is telegraphic and Italian adjectives do not agree; both are plain enough that a hub model
understands them too, so every suite also runs on models that were not trained here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vlalign_utils.data.scenes import (
    COLOURS,
    COLUMNS,
    DIGITS,
    FORMS,
    KIND_OF,
    KINDS,
    MAX_THINGS,
    OWNER_OF,
    OWNERS,
    PARITIES,
    ROWS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    held_out,
)

Language = Literal["en", "it"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_ITALIAN_WORDS = {
    SHAPES: "cerchio quadrato triangolo rombo stella croce cuore anello",
    DIGITS: "zero uno due tre quattro cinque sei sette otto nove",
    COLOURS: "rosso verde blu giallo viola arancio bianco rosa",
    SIZES: "piccolo grande",
    ROWS: "alto basso",
    COLUMNS: "sinistra destra",
    KINDS: "frutto metallo pianta pietra",
    OWNERS: "anna bruno carla dario",
    PARITIES: "pari dispari",
    ("yes", "no"): "si no",
}
ITALIAN = {
    en: it for words, text in _ITALIAN_WORDS.items() for en, it in zip(words, text.split(), strict=True)
}
ATTRIBUTES = ("size", "colour", "form", "place")
ORDER: dict[Language, tuple[str, ...]] = {"en": ATTRIBUTES, "it": ("form", "colour", "size", "place")}

_ASK: dict[str, dict[Language, str]] = {
    "describe": {"en": "what is there?", "it": "che cosa vedi?"},
    "colour": {"en": "what colour is {ref}?", "it": "che colore ha {ref}?"},
    "form": {"en": "what shape is {ref}?", "it": "che forma ha {ref}?"},
    "size": {"en": "what size is {ref}?", "it": "che taglia ha {ref}?"},
    "place": {"en": "where is {ref}?", "it": "dove sta {ref}?"},
    "kind": {"en": "what kind is {ref}?", "it": "che tipo ha {ref}?"},
    "owner": {"en": "who owns {ref}?", "it": "chi possiede {ref}?"},
    "exists": {"en": "is there a {ref}?", "it": "esiste un {ref}?"},
    "count": {"en": "how many {ref}?", "it": "quante {ref}?"},
    "digit": {"en": "what digit is this?", "it": "che cifra vedi?"},
    "left": {"en": "is {ref} left of {other}?", "it": "{ref} sta a sinistra di {other}?"},
    "right": {"en": "is {ref} right of {other}?", "it": "{ref} sta a destra di {other}?"},
    "above": {"en": "is {ref} above {other}?", "it": "{ref} sta sopra {other}?"},
    "below": {"en": "is {ref} below {other}?", "it": "{ref} sta sotto {other}?"},
    "highest": {"en": "which bar is highest?", "it": "quale barra supera tutte?"},
    "lowest": {"en": "which bar is lowest?", "it": "quale barra resta sotto tutte?"},
    "value": {"en": "how high is the {ref} bar?", "it": "quanto misura la barra {ref}?"},
    "read": {"en": "what word is written?", "it": "che parola leggi?"},
}
_REFER: dict[str, dict[Language, str]] = {
    "form": {"en": "the {form}", "it": "il {form}"},
    "colour": {"en": "the {colour} thing", "it": "la cosa {colour}"},
    "place": {"en": "the thing at {place}", "it": "la cosa in {place}"},
    "any form": {"en": "a {form}", "it": "un {form}"},
    "any colour": {"en": "a {colour} thing", "it": "una cosa {colour}"},
    "things": {"en": "things", "it": "cose"},
    "sized things": {"en": "{size} things", "it": "cose {size}"},
}


def word(english: str, language: Language) -> str:
    """A word of the world, or several separated by spaces, in the given language."""
    if language == "en":
        return english
    return " ".join(ITALIAN[w] for w in english.split())


def attribute(thing: Thing, name: str) -> str:
    """The thing's attribute as English words; `place` is its row and column."""
    return f"{thing.row} {thing.column}" if name == "place" else getattr(thing, name)


def refer(language: Language, reference: str, **slots: str) -> str:
    """A thing named by pattern `reference`, whose `slots` are filled with English words."""
    words = {slot: word(value, language) for slot, value in slots.items()}
    return _REFER[reference][language].format(**words) if reference else " ".join(words.values())


def ask(topic: str, language: Language, reference: str = "", **slots: str) -> str:
    """The wording of a question about what `reference` and `slots` name."""
    return _ASK[topic][language].format(ref=refer(language, reference, **slots))


def caption(
    scene: Scene,
    language: Language,
    mention: tuple[str, ...] = ATTRIBUTES,
    rng: np.random.Generator | None = None,
    mark: str = "",
    shuffle: bool = True,
) -> str:
    """Describe a scene. With `rng`, things come in random order; with `shuffle` so do their attributes.

    `mark` is put before every word of each thing's first attribute.
    """
    things, order = list(scene.things), list(mention)
    if rng is None:
        order = [a for a in ORDER[language] if a in mention]
    else:
        things = [things[i] for i in rng.permutation(len(things))]
    if rng is not None and shuffle:
        order = [order[i] for i in rng.permutation(len(order))]
    said = [[word(attribute(thing, a), language) for a in order] for thing in things]
    phrases = [" ".join([mark + first.replace(" ", f" {mark}"), *rest]) for first, *rest in said]
    return ", ".join(phrases) + "."


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene; `answer` is one of `choices`, all in the question's language."""

    topic: str
    text: str
    answer: str
    choices: tuple[str, ...]


def question(
    topic: str, language: Language, answer: str, choices: tuple[str, ...], reference: str = "", **slots: str
) -> Question:
    """A question with its answer and choices, all given in English."""
    return Question(
        topic,
        ask(topic, language, reference, **slots),
        word(answer, language),
        tuple(word(c, language) for c in choices),
    )


_RELATIONS = {"row": (ROWS, ("above", "below")), "column": (COLUMNS, ("left", "right"))}
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
_CHOICES = {"colour": COLOURS, "form": FORMS, "size": SIZES, "place": PLACES, "owner": OWNERS}


def ask_thing(
    scene: Scene,
    topic: str,
    language: Language,
    rng: np.random.Generator,
    mention: tuple[str, ...] = ATTRIBUTES,
) -> Question:
    """Ask for one attribute or fact of one thing, named by another attribute among those mentioned."""
    thing = scene.things[rng.integers(len(scene.things))]
    # The question must not name what decides its answer: the form decides the kind, the colour the owner.
    decides = {"kind": "form", "owner": "colour"}.get(topic, topic)
    by = [name for name in ("form", "colour", "place") if name in mention and name != decides]
    reference = by[rng.integers(len(by))]
    answer = getattr(thing, topic) if topic in ("kind", "owner") else attribute(thing, topic)
    choices = (PARITIES if thing.is_digit else KINDS) if topic == "kind" else _CHOICES[topic]
    return question(topic, language, answer, choices, reference, **{reference: attribute(thing, reference)})


def ask_exists(scene: Scene, language: Language, rng: np.random.Generator) -> Question:
    """Ask whether a colour and form occur together; half the answers are no.

    Negatives are adversarial: form and colour both occur but not together, or (nearly always) one occurs.
    """
    things = scene.things
    pairs = {(t.form, t.colour) for t in things}
    thing, other = (things[i] for i in rng.integers(len(things), size=2))
    form, colour = thing.form, thing.colour
    present = bool(rng.integers(2))
    if not present and other is not thing and rng.random() < 0.7:
        colour = other.colour
    # A training scene must not teach that the held-out combinations never exist.
    trained = scene.split == "train"
    while not present and ((form, colour) in pairs or (trained and held_out(form, colour))):
        if rng.integers(2):
            colour = COLOURS[rng.integers(len(COLOURS))]
        else:
            form = FORMS[rng.integers(len(FORMS))]
    slots = {"colour": colour, "form": form} if language == "en" else {"form": form, "colour": colour}
    return question("exists", language, "yes" if present else "no", ("yes", "no"), **slots)


def ask_count(
    scene: Scene, language: Language, rng: np.random.Generator, mention: tuple[str, ...] = ATTRIBUTES
) -> Question:
    """Ask how many things there are, or how many of one size."""
    if "size" in mention and rng.integers(2):
        size = SIZES[rng.integers(len(SIZES))]
        count = sum(t.size == size for t in scene.things)
        return question("count", language, DIGITS[count], DIGITS[: MAX_THINGS + 1], "sized things", size=size)
    return question("count", language, DIGITS[len(scene.things)], DIGITS[1 : MAX_THINGS + 1], "things")


def ask_relation(
    scene: Scene, language: Language, rng: np.random.Generator, mention: tuple[str, ...] = ATTRIBUTES
) -> Question:
    """Ask whether one thing is left of, right of, above or below another; half the answers are no.

    Only for scenes of two things or more; the two asked about differ in what the relation is about.
    """
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    sides = [s for s in _RELATIONS if getattr(first, s) != getattr(second, s)]
    side = sides[rng.integers(len(sides))]
    values, topics = _RELATIONS[side]
    wanted = int(rng.integers(2))
    by = [name for name in ("form", "colour") if name in mention]
    ref, other = (
        refer(language, name, **{name: attribute(thing, name)})
        for thing, name in ((t, by[rng.integers(len(by))]) for t in (first, second))
    )
    true = getattr(first, side) == values[wanted]
    return Question(
        "relation",
        _ASK[topics[wanted]][language].format(ref=ref, other=other),
        word("yes" if true else "no", language),
        (word("yes", language), word("no", language)),
    )


# What a picture can be asked without a fact; twice the hardest, which need two things found.
SEEN = ("colour", "form", "size", "place", "exists", "exists", "count", "relation", "relation")


def ask_scene(
    scene: Scene,
    language: Language,
    rng: np.random.Generator,
    topics: tuple[str, ...] = SEEN,
    mention: tuple[str, ...] = ATTRIBUTES,
) -> Question:
    """Ask about one of the topics; a single thing has no relation, and is counted instead."""
    topic = topics[rng.integers(len(topics))]
    if topic == "exists":
        return ask_exists(scene, language, rng)
    if topic == "relation" and len(scene.things) > 1:
        return ask_relation(scene, language, rng, mention)
    if topic in ("count", "relation"):
        return ask_count(scene, language, rng, mention)
    return ask_thing(scene, topic, language, rng, mention)


def ask_fact(language: Language, rng: np.random.Generator) -> Question:
    """Ask for a fact directly, with no scene."""
    if rng.integers(2):
        form = FORMS[rng.integers(len(FORMS))]
        choices = PARITIES if form in DIGITS else KINDS
        return question("kind", language, KIND_OF[form], choices, "any form", form=form)
    colour = COLOURS[rng.integers(len(COLOURS))]
    return question("owner", language, OWNER_OF[colour], OWNERS, "any colour", colour=colour)


def ask_digit(value: int, language: Language) -> Question:
    """Ask which digit is shown alone."""
    return question("digit", language, DIGITS[value], DIGITS)


def describe(language: Language) -> str:
    """Ask for a caption."""
    return ask("describe", language)


def vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All words of the world, sorted: content words, and grammar words (those for quadrants included)."""
    content = set(ITALIAN) | set(ITALIAN.values())
    texts = [t for table in (_ASK, _REFER) for entry in table.values() for t in entry.values()]
    empty = dict.fromkeys(("ref", "other", *ATTRIBUTES), "")
    grammar = {w.strip("?") for text in texts for w in text.format(**empty).split()} - {""}
    grammar |= {w for en in (*ROWS, *COLUMNS) for w in (en, ITALIAN[en])}
    return tuple(sorted(content - grammar)), tuple(sorted(grammar))
