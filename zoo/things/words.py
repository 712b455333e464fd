"""Words for each thing: names, plurals, synonyms, hypernyms, keywords, and names in other languages."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import inflect
import yaml
from wordnet import Nouns

from vlalign_utils.data.things.stems import shares_stem, words_of

HERE = Path(__file__).parent
LANGUAGES = ("de", "fr", "es", "it")
ENGLISH = ("en", "en-GB", "en-AU", "en-CA", "en-001")
NUMBERS = {"": "one", "*": "plural", "~": "mass"}
COMMON_SENSES = 2  # a synonym counts only where the thing is one of this many first senses of the word
MAX_KEYWORDS, MAX_NARROWER = 8, 3
RULES = yaml.safe_load((HERE / "rules.yml").read_text())


def _listed(rule: str) -> frozenset[str]:
    return frozenset(RULES[rule].split(", "))


EVERYDAY = _listed("everyday")
NOT_SYNONYMS, NOT_KEYWORDS = _listed("not_synonyms"), _listed("not_keywords")
DESCRIBING, MASS = _listed("describing"), _listed("mass")


@dataclass(frozen=True)
class Choice:
    """One entry of `choices.yml`."""

    short_name: str
    name: str
    number: str
    kind: str
    anchors: tuple[str, ...]


def choices() -> list[Choice]:
    """The things, in the order of `choices.yml`."""
    found = []
    for kind, entry in yaml.safe_load((HERE / "choices.yml").read_text()).items():
        for text in entry["things"].split(","):
            short_name, _, name = (part.strip() for part in text.partition("="))
            mark = (name or short_name)[-1] if (name or short_name)[-1] in "*~" else ""
            short_name, name = short_name.rstrip("*~"), (name or short_name).rstrip("*~")
            found.append(Choice(short_name, name, NUMBERS[mark], kind, tuple(entry["anchors"])))
    return found


class Words:
    """What CLDR and WordNet say about the things."""

    def __init__(self, cldr: Path, wordnet: Path) -> None:
        """Read both packages and the tables beside this script."""
        self.annotations: dict[str, dict[str, dict[str, list[str]]]] = {
            code: json.loads((cldr / "annotations" / code / "annotations.json").read_text())["annotations"][
                "annotations"
            ]
            for code in (*ENGLISH, *LANGUAGES)
        }
        self.nouns = Nouns(wordnet)
        self.known = {
            line.split(" ", 1)[0]
            for part in ("noun", "verb", "adj")
            for line in (wordnet / f"index.{part}").read_text().splitlines()
        }
        self.translations = yaml.safe_load((HERE / "translations.yml").read_text())
        self.glosses = yaml.safe_load((HERE / "glosses.yml").read_text())
        self.choices = choices()
        self.plurals = inflect.engine()

    @cached_property
    def emoji(self) -> dict[str, str]:
        """The emoji of each English short name."""
        return {entry["tts"][0]: emoji for emoji, entry in self.annotations["en"].items() if "tts" in entry}

    @cached_property
    def spread(self) -> Counter[str]:
        """How many emoji have a keyword."""
        return Counter(word for entry in self.annotations["en"].values() for word in entry.get("default", []))

    @cached_property
    def taken(self) -> set[str]:
        """Words that cannot be synonyms of one thing: names and kinds."""
        named = {word for choice in self.choices for word in (choice.name.lower(), choice.kind)}
        return named | EVERYDAY | NOT_SYNONYMS

    def phrases(self, things: list[dict[str, Any]]) -> dict[str, str]:
        """Each kind and hypernym with its article, as it stands after "is"."""
        found = sorted({word for thing in things for word in thing["hypernyms"]})
        return {word: word if word in MASS else self.plurals.a(word) for word in found}

    def entry(self, choice: Choice) -> dict[str, Any]:
        """The thing's entry of `things.json`."""
        emoji = self.emoji[choice.short_name]
        anchors = [RULES["senses"][choice.name]] if choice.name in RULES["senses"] else list(choice.anchors)
        sense = self.nouns.find(self._forms(choice), anchors)
        synonyms = self._synonyms(choice, emoji, sense)
        return {
            "name": choice.name,
            "kind": choice.kind,
            "number": choice.number,
            "plural": self._plural(choice),
            "article": self.plurals.a(choice.name).split()[0] if choice.number == "one" else "",
            "hypernyms": self._hypernyms(choice, sense, synonyms),
            "synonyms": synonyms,
            "gloss": self._gloss(choice, sense, synonyms),
            "keywords": self._keywords(choice, emoji, synonyms),
            **dict(zip(LANGUAGES, self._translated(choice, emoji), strict=True)),
            "emoji": emoji,
        }

    def _forms(self, choice: Choice) -> list[str]:
        forms = [choice.name, choice.name.replace("-", " "), choice.short_name, self._plural(choice)]
        return [*forms, self.plurals.singular_noun(choice.name)] if choice.number == "plural" else forms

    def _synonyms(self, choice: Choice, emoji: str, sense: str | None) -> list[str]:
        found = [
            lemma
            for lemma in (self.nouns.synsets[sense].lemmas if sense else ())
            if lemma.islower() and sense in self.nouns.senses[lemma][:COMMON_SENSES]
        ]
        for code in ENGLISH:
            found += [n.lower() for n in self.annotations[code].get(emoji, {}).get("tts", [])]
        return [
            word
            for word in dict.fromkeys(found)
            if word not in self.taken
            and len(word.split()) <= 3
            and len(word) > 2
            and not DESCRIBING & set(word.split())
        ]

    def _hypernyms(self, choice: Choice, sense: str | None, synonyms: list[str]) -> list[str]:
        broader = [RULES["broader"][choice.kind]] if choice.kind in RULES["broader"] else []
        narrower: list[str] = []
        barred = {*broader, "plant"}  # a factory is a "plant", and a Christmas tree an ornament
        for above in self.nouns.chain(sense) if sense else ():
            lemmas = self.nouns.synsets[above].lemmas
            if choice.kind in lemmas:
                break
            narrower += [lemma for lemma in lemmas if lemma in EVERYDAY and lemma not in barred][:1]
        own = {choice.name.lower(), *synonyms}
        short = [word for word in dict.fromkeys(narrower) if word not in own][:MAX_NARROWER]
        return [*short, choice.kind, *broader]

    def _plural(self, choice: Choice) -> str:
        if choice.number != "one":
            return choice.name
        return RULES["plurals"].get(choice.name) or self.plurals.plural_noun(choice.name)

    def _gloss(self, choice: Choice, sense: str | None, synonyms: list[str]) -> str:
        """WordNet's definition up to the first semicolon, or nothing where it gives the name away.

        Raises ValueError where a definition of our own does.
        """
        gloss = self.glosses.get(choice.name, "")
        if sense and not gloss:
            gloss = re.sub(r"\([^)]*\) *", "", self.nouns.synsets[sense].gloss).split(";")[0]
        own = [part for name in (*self._forms(choice), *synonyms) for part in words_of(name)]
        told = any(shares_stem(word, part) for word in words_of(gloss) for part in own)
        if told and choice.name in self.glosses:
            raise ValueError(f"the definition of {choice.name} in glosses.yml shares a word with {own}")
        return "" if told or not 4 <= len(gloss.split()) <= 20 else gloss.strip()

    def _keywords(self, choice: Choice, emoji: str, synonyms: list[str]) -> list[str]:
        """CLDR's keywords without the name: nouns, verbs and adjectives, the most telling first."""
        own = [choice.name, *synonyms, *self._forms(choice)]
        found = [
            word
            for word in self.annotations["en"][emoji]["default"]
            if re.fullmatch("[a-z]{3,}", word)
            and word in self.known
            and word not in self.taken
            and word not in NOT_KEYWORDS
            and not any(shares_stem(word, part) for name in own for part in re.split("[ -]", name))
        ]
        telling = sorted(found, key=self.spread.__getitem__)[:MAX_KEYWORDS]
        return [RULES["capitals"].get(word, word) for word in telling]

    def _translated(self, choice: Choice, emoji: str) -> list[str]:
        if choice.name in self.translations:
            return self.translations[choice.name]
        return [self.annotations[code][emoji]["tts"][0] for code in LANGUAGES]
