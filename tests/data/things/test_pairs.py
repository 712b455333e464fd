"""Pairs of real things: texts of one scene that differ in words, and scenes that differ in their texts."""

import numpy as np
import pytest
from blank_things import blank_things

from vlalign_utils.data.things.pairs import COMPARED, caption_pairs
from vlalign_utils.data.things.render import render
from vlalign_utils.data.things.splits import shows_held_out
from vlalign_utils.data.things.stems import shares_stem, words_of
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.wordings import WORDINGS
from vlalign_utils.data.things.words import caption
from vlalign_utils.data.worlds import WORLDS


@pytest.fixture(scope="module")
def pairs():
    with pytest.MonkeyPatch.context() as patch:
        blank_things(patch)
        return caption_pairs(60, 4)


def test_pairs_are_reproducible_with_distinct_texts(pairs, monkeypatch):
    for wording in COMPARED:  # no two of the same letters: they could be the same pieces
        assert len({"".join(sorted(pair.caption[wording])) for pair in pairs}) == 60
    assert {len(pair.scene.things) for pair in pairs} == {1, 2, 3}
    blank_things(monkeypatch)
    assert [pair.caption for pair in caption_pairs(60, 4)] == [pair.caption for pair in pairs]
    assert [pair.caption for pair in caption_pairs(60, 5)] != [pair.caption for pair in pairs]


def test_the_image_is_of_the_scene():
    (pair,) = caption_pairs(1, 2)
    assert np.array_equal(np.asarray(pair.image), render(pair.scene, about.SIDE))
    assert pair.caption["en"] == caption(pair.scene)


def test_what_chapters_compare_is_there_and_distinct():
    assert tuple(WORLDS["things"].wordings) == COMPARED
    assert set(COMPARED) <= set(WORDINGS)


@pytest.mark.parametrize("wording", ["described", "associated", "kinds"])
def test_other_words_do_not_name_the_thing(wording, pairs):
    alone = [pair for pair in pairs if len(pair.scene.things) == 1]
    assert len(alone) > 5
    for pair in alone:
        names = words_of(pair.scene.things[0].name)
        said = words_of(pair.caption[wording])
        assert not any(shares_stem(name, word) for name in names for word in said)


def test_all_things_are_said_in_every_wording(pairs):
    for pair in pairs:
        things = pair.scene.things
        assert pair.caption["described"].count(". ") >= len(things) - 1
        assert all(thing.name_in("it").lower() in pair.caption["it"].lower() for thing in things)
        assert all(thing.name in pair.caption["en"].lower() for thing in things if thing.name.islower())


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_keep_to_their_split(split, monkeypatch):
    blank_things(monkeypatch)
    for pair in caption_pairs(30, 1, split):
        scene = pair.scene
        assert scene.split == split
        if len(scene.things) > 1:
            held_out = shows_held_out(scene.things, [placed.style for placed in scene.placed])
            assert held_out == (split == "test")


def test_asking_for_more_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("vlalign_utils.data.things.pairs.TRIES", 1)
    monkeypatch.setattr("vlalign_utils.data.things.pairs.MOST", 1)
    blank_things(monkeypatch)
    with pytest.raises(ValueError, match=r"only \d+ scenes with texts of their own were found; asked for 90"):
        caption_pairs(90)
