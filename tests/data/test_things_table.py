"""The table of things: what it must hold, and what a damaged one says."""

import doctest
import importlib
import importlib.util
import sys
from collections import Counter
from types import ModuleType

import pytest

from vlalign_utils.data.things import table
from vlalign_utils.data.things.stems import shares_stem, words_of
from vlalign_utils.data.things.table import FOLDER, LANGUAGES, by_name, kinds, layout, phrases, things


def _packages() -> ModuleType:
    """The script's list of packages, which needs nothing but the standard library."""
    spec = importlib.util.spec_from_file_location("things_packages", FOLDER / "packages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder in place of the world's, and no memory of what was read."""
    cached = (table._table, table.things, table.layout, table.phrases, table.kinds, table.by_name)
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


def test_there_are_six_hundred_things_with_unique_plain_names():
    assert len(things()) >= 600
    names = [thing.name.lower() for thing in things()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if not name.isascii() or len(name.split()) > 2] == []
    assert [thing.index for thing in things()] == list(range(len(things())))


def test_no_synonym_is_the_name_or_kind_of_a_thing():
    taken = {thing.name for thing in things()} | set(kinds())
    assert {s for thing in things() for s in thing.synonyms} & taken == set()


def test_every_kind_has_several_things_and_is_among_their_hypernyms():
    assert len(kinds()) >= 20
    assert min(map(len, kinds().values())) >= 4
    for thing in things():
        assert thing.kind in thing.hypernyms, thing.name
        assert thing.name not in thing.hypernyms
        assert set(thing.hypernyms) <= set(phrases())


def test_every_thing_has_a_name_in_every_language():
    assert len(LANGUAGES) >= 4
    for thing in things():
        for language in LANGUAGES:
            name = thing.name_in(language)
            assert name.strip() == name, (thing.name, language)
            assert 0 < len(name.split()) <= 4, (thing.name, language)
        assert thing.name_in("en") == thing.name
    mouse = by_name()["mouse"]
    assert [mouse.name_in(language) for language in LANGUAGES] == ["Maus", "souris", "ratón", "topo"]
    with pytest.raises(ValueError, match="language is 'xx'; things have names in en, de"):
        mouse.name_in("xx")


def test_definitions_and_keywords_share_no_stem_with_a_name():
    for thing in things():
        own = [word for name in (thing.name, *thing.synonyms) for word in words_of(name)]
        for word in (*words_of(thing.gloss), *thing.keywords):
            assert not any(shares_stem(word, part) for part in own), (thing.name, word)


@pytest.mark.parametrize(
    ("name", "article", "plural"),
    [
        ("unicorn", "a", "unicorns"),
        ("owl", "an", "owls"),
        ("hourglass", "an", "hourglasses"),
        ("UFO", "a", "UFOs"),
        ("x-ray", "an", "x-rays"),
        ("mouse", "a", "mice"),
        ("goose", "a", "geese"),
        ("sheep", "a", "sheep"),
        ("wolf", "a", "wolves"),
        ("police officer", "a", "police officers"),
        ("jeans", "", "jeans"),
        ("rice", "", "rice"),
    ],
)
def test_articles_and_plurals(name, article, plural):
    thing = by_name()[name]
    assert (thing.article, thing.plural) == (article, plural)
    assert (thing.number == "one") == bool(article)


def test_the_attribution_names_every_package_with_its_licence_and_hash():
    text = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    packages = _packages().PACKAGES
    assert len(packages) == 6
    for package in packages:
        for fact in (package.name, package.version, package.sha256, package.licence, package.author):
            assert fact in text, fact
    assert f"{len(things())} things" in text
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0", "Unicode-3.0", "WordNet 3.0"):
        assert f"- {licence}:" in text


def test_no_share_alike_or_copyleft_drawings():
    licences = {package.licence for package in _packages().PACKAGES}
    assert licences <= {"Apache-2.0", "MIT", "CC-BY-4.0", "Unicode-3.0", "WordNet-3.0"}


def test_the_world_is_compact():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 13_000_000


def test_a_missing_table_is_said(elsewhere):
    with pytest.raises(
        ValueError, match=r"things\.json cannot be read \(No such file or directory\): restore"
    ):
        things()


@pytest.mark.parametrize("text", ["", "{", '{"things": []}'])
def test_another_table_is_said(elsewhere, text):
    (elsewhere / "things.json").write_text(text)
    for read in (things, layout, phrases):
        with pytest.raises(
            ValueError, match=r"things\.json is not the table that this version was made with"
        ):
            read()


@pytest.mark.parametrize("name", ["table", "stems", "render", "words"])
def test_the_examples_run(name):
    module = importlib.import_module(f"vlalign_utils.data.things.{name}")
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
