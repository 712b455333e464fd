"""Captions and hypernyms read as people write them, and descriptions keep the name to themselves."""

import numpy as np
import pytest

from vlalign_utils.data.things.scenes import draw_repeated, place
from vlalign_utils.data.things.stems import shares_stem, words_of
from vlalign_utils.data.things.table import by_name, things
from vlalign_utils.data.things.words import (
    accepted_kinds,
    accepted_names,
    association,
    caption,
    caption_in,
    counted,
    definite,
    description,
    hypernym_sentence,
    kind_phrase,
    listed,
    with_article,
)


def _placed(names, arrangement):
    shown = [by_name()[name] for name in names]
    return place(np.random.default_rng(0), "train", shown, arrangement)


@pytest.mark.parametrize(
    ("names", "arrangement", "expected"),
    [
        (["owl"], "alone", "An owl."),
        (["jeans"], "alone", "Jeans."),
        (["dog", "rice"], "row", "A dog on the left and rice on the right."),
        (["dog", "ant"], "column", "A dog at the top and an ant at the bottom."),
        (["dog", "ant", "UFO"], "row", "A dog on the left, an ant in the middle and a UFO on the right."),
        (["dog", "fox", "ant", "owl"], "quadrants", "A dog, a fox, an ant and an owl."),
        (["fox", "fox", "fox"], "quadrants", "Three foxes."),
        (["goose", "goose", "owl"], "quadrants", "Two geese and an owl."),
    ],
)
def test_captions(names, arrangement, expected):
    assert caption(_placed(names, arrangement)) == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "dog, fox and owl"),
        ("de", "Hund, Fuchs und Eule"),
        ("fr", "chien, renard et chouette"),
        ("es", "perro, zorro y búho"),
        ("it", "cane, volpe e gufo"),
    ],
)
def test_names_in_other_languages(language, expected):
    assert caption_in(_placed(["dog", "fox", "owl"], "row"), language) == expected
    with pytest.raises(ValueError, match="language is 'la'"):
        caption_in(_placed(["dog"], "alone"), "la")


def test_articles_of_names_follow_how_they_sound():
    sounds_like_a_consonant = {"unicorn", "UFO"}
    sounds_like_a_vowel = {"hourglass", "x-ray"}
    for thing in things():
        if thing.number != "one":
            assert with_article(thing) == thing.name
            continue
        vowel = thing.name[0].lower() in "aeiou" and thing.name not in sounds_like_a_consonant
        expected = "an" if vowel or thing.name in sounds_like_a_vowel else "a"
        assert with_article(thing) == f"{expected} {thing.name}"


def test_numbers_and_lists():
    mouse = by_name()["mouse"]
    assert [counted(mouse, n) for n in (0, 1, 4)] == ["no mice", "one mouse", "four mice"]
    assert definite(mouse) == "the mouse"
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"], "it")] == ["a", "a and b", "a, b e c"]
    scene = draw_repeated(np.random.default_rng(0), "train", 3)
    assert caption(scene) == f"Three {scene.things[0].plural}."


def test_hypernym_sentences():
    assert hypernym_sentence(by_name()["penguin"]) == "A penguin is a kind of bird."
    assert hypernym_sentence(by_name()["grapes"]) == "Grapes are a kind of fruit."
    assert hypernym_sentence(by_name()["rice"], "food") == "Rice is a kind of food."
    assert kind_phrase("animal") == "an animal"
    assert kind_phrase("clothing") == "clothing"
    for thing in things():
        assert thing.kind in accepted_kinds(thing)
        assert kind_phrase(thing.kind).split()[-1] == thing.kind.split()[-1]


def test_descriptions_share_no_word_with_the_name_or_a_synonym():
    rng = np.random.default_rng(0)
    for thing in things():
        own = [word for name in accepted_names(thing) for word in words_of(name)]
        for text in (description(thing), association(thing), association(thing, rng)):
            shared = [w for w in words_of(text) if w != "goes" and any(shares_stem(w, part) for part in own)]
            assert shared == [], (thing.name, text)


def test_descriptions_are_of_one_thing_each_and_readable():
    texts = [description(thing) for thing in things()]
    assert len(set(texts)) == len(texts)
    assert all(thing.gloss for thing in things())
    assert all(3 <= len(text.split()) <= 24 for text in texts)


def test_associations_vary_with_the_generator():
    pilot = by_name()["jockey"]
    thing = next(t for t in things() if len(t.keywords) >= 6)
    texts = {association(thing, np.random.default_rng(i)) for i in range(8)}
    assert len(texts) > 3
    assert association(pilot).startswith("a person that goes with")


def test_lenient_names_contain_plural_and_synonyms():
    assert {"couch", "couches", "sofa"} <= set(accepted_names(by_name()["couch"]))
