"""Pairs of real things: texts of one scene that differ in words, and scenes that differ in their texts."""

import numpy as np
import pytest
from blank_things import blank_things

from vlalign_utils.data.things.pairs import COMPARED, caption_pairs
from vlalign_utils.data.things.render import render
from vlalign_utils.data.things.scenes import place
from vlalign_utils.data.things.splits import shows_held_out
from vlalign_utils.data.things.stems import shares_stem, words_of
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.table import LANGUAGES, by_name
from vlalign_utils.data.things.wordings import WORDINGS
from vlalign_utils.data.things.words import association, caption, description
from vlalign_utils.data.worlds import WORLDS


@pytest.fixture(scope="module")
def pairs():
    with pytest.MonkeyPatch.context() as patch:
        blank_things(patch)
        return caption_pairs(60, 4)


def test_pairs_are_reproducible_with_distinct_texts(pairs, monkeypatch):
    for wording in COMPARED:  # no two of the same letters: they could be the same pieces
        assert len({"".join(sorted(pair.caption[wording])) for pair in pairs}) == 60
    assert len({pair.scene.things for pair in pairs}) == 60
    assert all(len(pair.scene.things) == 1 for pair in pairs)
    blank_things(monkeypatch)
    assert [pair.caption for pair in caption_pairs(60, 4)] == [pair.caption for pair in pairs]
    assert [pair.caption for pair in caption_pairs(60, 5)] != [pair.caption for pair in pairs]


def test_the_image_is_of_the_scene():
    (pair,) = caption_pairs(1, 2)
    assert np.array_equal(np.asarray(pair.image), render(pair.scene, about.SIDE))
    assert pair.caption["en"] == caption(pair.scene)


def test_what_chapters_compare_is_there_and_distinct():
    assert tuple(WORLDS["things"].wordings) == COMPARED
    assert set(COMPARED) < set(WORDINGS)


@pytest.mark.parametrize("wording", ["described", "associated", "kinds"])
def test_other_words_do_not_name_the_thing(wording, pairs):
    for pair in pairs:
        names = words_of(pair.scene.things[0].name)
        said = words_of(pair.caption[wording])
        assert not any(shares_stem(name, word) for name in names for word in said)


def test_every_wording_is_of_the_thing(pairs):
    for pair in pairs:
        (thing,) = pair.scene.things
        assert set(pair.caption) == set(WORDINGS)
        assert pair.caption["en"].lower().strip(".").endswith(thing.name.lower())
        for language in LANGUAGES:
            assert pair.caption[language].lower() == f"{thing.name_in(language)}.".lower()
        assert pair.caption["described"].lower() == f"{description(thing)}.".lower()
        assert pair.caption["associated"].lower() == f"{association(thing)}.".lower()


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_are_of_trained_things_in_trained_styles(split, monkeypatch):
    blank_things(monkeypatch)
    for pair in caption_pairs(30, 1, split):
        assert pair.scene.split == split
        assert not shows_held_out(pair.scene.things, [placed.style for placed in pair.scene.placed])


def test_asking_for_more_than_there_are_is_refused(monkeypatch):
    blank_things(monkeypatch)
    with pytest.raises(ValueError, match=r"only 5\d\d things have texts of their own.*asked for 600"):
        caption_pairs(600)


def test_scenes_of_several_things_are_said_thing_by_thing():
    scene = place(np.random.default_rng(0), "test", [by_name()["rat"], by_name()["owl"]], "row")
    rat, owl = scene.things
    assert WORDINGS["described"](scene).lower() == f"{description(rat)}. {description(owl)}.".lower()
    assert WORDINGS["kinds"](scene) == "A rodent and an animal."  # an owl is a "bird of Minerva", too
    assert WORDINGS["it"](scene) == f"{rat.name_in('it').capitalize()} e {owl.name_in('it')}."
