"""The things: names, kinds, hypernyms, and names in other languages, from `zoo/things/things.json`."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from vlalign_utils.paths import ROOT

FOLDER = ROOT / "zoo" / "things"
LANGUAGES = ("de", "fr", "es", "it")
# Of things.json, which has those of the sheets: what was measured with another world is known to be stale.
SHA256 = "6e1f3eeeb4259a9f70ff8af04f5c7300631c56892173e6284e9743fc1eeeef1c"


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing. `index` is its place in the table and on every sheet.

    `number` is "one" for what is counted, "plural" for names such as "jeans", "mass" for names such as
    "rice"; `hypernyms` go from the nearest to the widest and contain `kind`; `gloss` is a definition without
    the name, or empty; `keywords` share no stem with the name or its synonyms; `translations` are in the
    order of `LANGUAGES`.
    """

    index: int
    name: str
    kind: str
    number: str
    plural: str
    article: str
    hypernyms: tuple[str, ...]
    synonyms: tuple[str, ...]
    gloss: str
    keywords: tuple[str, ...]
    translations: tuple[str, ...]
    emoji: str

    def __hash__(self) -> int:
        """Hash by index: things are looked up often, and have many fields."""
        return self.index

    def name_in(self, language: str) -> str:
        """Name in "en" or one of `LANGUAGES`. Raises ValueError for another language."""
        if language == "en":
            return self.name
        if language not in LANGUAGES:
            raise ValueError(f"language is {language!r}; things have names in en, {', '.join(LANGUAGES)}")
        return self.translations[LANGUAGES.index(language)]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where cells lie on a sheet: pixels of a cell's side, cells in a row, and each style's SHA-256."""

    cell: int
    columns: int
    sha256: dict[str, str]


@cache
def things() -> tuple[Thing, ...]:
    """Every thing, in the order of the sheets. Raises ValueError when the table is missing or damaged.

    >>> from vlalign_utils.data.things.table import things
    >>> thing = next(t for t in things() if t.name == "mouse")
    >>> thing.kind, thing.plural, thing.name_in("fr")
    ('mammal', 'mice', 'souris')
    """
    return tuple(_thing(i, entry) for i, entry in enumerate(_table()["things"]))


@cache
def layout() -> Layout:
    """Layout of the sheets. Raises ValueError when the table is missing or damaged."""
    table = _table()
    styles = {style: facts["sha256"] for style, facts in table["styles"].items()}
    return Layout(table["cell"], table["columns"], styles)


@cache
def phrases() -> dict[str, str]:
    """Kinds and hypernyms as they stand after "is": "a bird", "clothing"."""
    return dict(_table()["phrases"])


@cache
def by_name() -> dict[str, Thing]:
    """Every thing by its English name."""
    return {thing.name: thing for thing in things()}


@cache
def kinds() -> dict[str, tuple[Thing, ...]]:
    """The things of each kind."""
    names = dict.fromkeys(thing.kind for thing in things())
    return {kind: tuple(thing for thing in things() if thing.kind == kind) for kind in names}


@cache
def _table() -> dict[str, Any]:
    path = FOLDER / "things.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): restore it from git") from error
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the table that this version was made with: restore it from git")
    return json.loads(text)


def _thing(index: int, entry: dict[str, Any]) -> Thing:
    return Thing(
        index=index,
        name=entry["name"],
        kind=entry["kind"],
        number=entry["number"],
        plural=entry["plural"],
        article=entry["article"],
        hypernyms=tuple(entry["hypernyms"]),
        synonyms=tuple(entry["synonyms"]),
        gloss=entry["gloss"],
        keywords=tuple(entry["keywords"]),
        translations=tuple(entry[language] for language in LANGUAGES),
        emoji=entry["emoji"],
    )
