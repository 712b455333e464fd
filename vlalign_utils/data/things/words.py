"""Words for things and scenes: articles and plurals, captions, descriptions without the name, hypernyms."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.stems import shares_stem, words_of
from vlalign_utils.data.things.table import Thing, phrases

NUMBERS = ("no", "one", "two", "three", "four")
AND = {"en": "and", "de": "und", "fr": "et", "es": "y", "it": "e"}
PLACES = {
    ("row", 2): ("on the left", "on the right"),
    ("row", 3): ("on the left", "in the middle", "on the right"),
    ("column", 2): ("at the top", "at the bottom"),
    ("column", 3): ("at the top", "in the middle", "at the bottom"),
}
MOST_KEYWORDS = 3  # in a description


def capital(text: str) -> str:
    """Text with a capital for its first letter, as an answer or a sentence begins."""
    return text[0].upper() + text[1:]


def with_article(thing: Thing) -> str:
    """Name as it stands in a sentence: "an owl", "grapes", "rice"."""
    return f"{thing.article} {thing.name}" if thing.number == "one" else thing.name


def definite(thing: Thing) -> str:
    """Name with the definite article: "the owl"."""
    return f"the {thing.name}"


def counted(thing: Thing, number: int) -> str:
    """Number and name: "one owl", "three mice"."""
    return f"{NUMBERS[number]} {thing.name if number == 1 else thing.plural}"


def verb(thing: Thing) -> str:
    """Form of "to be" after the name."""
    return "are" if thing.number == "plural" else "is"


def kind_phrase(word: str) -> str:
    """Kind or hypernym as it stands after "is": "a bird", "clothing"."""
    return phrases()[word]


def listed(parts: Sequence[str], language: str = "en") -> str:
    """Join parts with commas and the language's "and"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {AND[language]} {parts[-1]}"


def sentence(text: str) -> str:
    """Capitalise the first letter and add a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def caption(scene: Scene) -> str:
    """What the scene shows, and where: "A dog on the left and rice on the right."."""
    shown = scene.things
    different = list(dict.fromkeys(shown))
    if len(different) < len(shown):
        return sentence(listed([_numbered(t, shown.count(t)) for t in different]))
    places = PLACES.get((scene.arrangement, len(shown)), ("",) * len(shown))
    return sentence(listed([f"{with_article(t)} {p}".strip() for t, p in zip(shown, places, strict=True)]))


def caption_in(scene: Scene, language: str) -> str:
    """Names of the scene's things in "en" or one of the table's languages, each once.

    Raises ValueError for another language.
    """
    return listed([thing.name_in(language) for thing in dict.fromkeys(scene.things)], language)


def hypernym_sentence(thing: Thing, hypernym: str | None = None) -> str:
    """Say what the thing is a kind of; by default its kind: "A sparrow is a kind of bird."."""
    return sentence(f"{with_article(thing)} {verb(thing)} a kind of {hypernym or thing.kind}")


def description(thing: Thing) -> str:
    """Describe the thing without its name or a synonym: by its definition, or by what it is and goes with.

    >>> from vlalign_utils.data.things.table import by_name
    >>> description(by_name()["camel"])
    'cud-chewing mammal used as a draft or saddle animal in desert regions'
    """
    return thing.gloss or association(thing)


def association(thing: Thing, rng: np.random.Generator | None = None) -> str:
    """Say what the thing is and what it goes with, without its name; `rng` chooses the keywords."""
    what = nearest_kind(thing)
    goes_with = [word for word in thing.keywords if word not in words_of(what)]
    if rng is not None:
        goes_with = [goes_with[i] for i in rng.permutation(len(goes_with))]
    return f"{what} that goes with {listed(goes_with[:MOST_KEYWORDS])}" if goes_with else what


@cache
def nearest_kind(thing: Thing) -> str:
    """Nearest hypernym without a stem of the thing's names, as it stands after "is".

    >>> from vlalign_utils.data.things.table import by_name
    >>> nearest_kind(by_name()["tiger"]), nearest_kind(by_name()["fish"])
    ('a feline', 'a sea animal')
    """
    own = [word for name in (thing.name, *thing.synonyms) for word in words_of(name)]
    wider = [
        word
        for word in thing.hypernyms
        if not any(shares_stem(part, name) for part in words_of(word) for name in own)
    ]
    return kind_phrase(wider[0]) if wider else "a thing"


def accepted_names(thing: Thing) -> tuple[str, ...]:
    """Names that count as the thing's in lenient scoring: its name, plural and synonyms."""
    return tuple(dict.fromkeys((thing.name, thing.plural, *thing.synonyms)))


def accepted_kinds(thing: Thing) -> tuple[str, ...]:
    """Words that count as the thing's kind in lenient scoring: its hypernyms."""
    return thing.hypernyms


def _numbered(thing: Thing, number: int) -> str:
    return with_article(thing) if number == 1 else counted(thing, number)
