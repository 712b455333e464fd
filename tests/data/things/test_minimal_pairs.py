"""Minimal pairs of real things: one drawing differs, and with it one answer."""

import numpy as np
import pytest

from vlalign_utils.data.things.minimal_pairs import ScenePair, minimal_pairs, scene_pairs
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.render import coverage, render
from vlalign_utils.data.things.splits import shows_held_out
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.words import caption, with_article

SIDE = 96
PAIRS = scene_pairs(24)


def styles(scene) -> list[str]:
    return [placed.style for placed in scene.placed]


@pytest.mark.parametrize("pair", PAIRS)
def test_one_drawing_differs_and_in_nothing_but_the_thing(pair: ScenePair) -> None:
    assert pair.scene.seed == pair.other.seed
    assert pair.scene.background == pair.other.background
    for i, (a, b) in enumerate(zip(pair.scene.placed, pair.other.placed, strict=True)):
        assert (a.style, a.x, a.y, a.size, a.mirrored) == (b.style, b.x, b.y, b.size, b.mirrored)
        assert (a.index != b.index) == (i == pair.thing)
        assert i == pair.thing or not overlap(b.thing, pair.other.placed[pair.thing].thing)


@pytest.mark.parametrize("pair", PAIRS)
def test_images_differ_only_where_the_thing_is(pair: ScenePair) -> None:
    own, other = (coverage(scene, SIDE)[pair.thing] for scene in (pair.scene, pair.other))
    changed = (render(pair.scene, SIDE) != render(pair.other, SIDE)).any(axis=-1)
    assert changed.sum() > 50
    assert not (changed & (own == 0) & (other == 0)).any()


def test_one_question_has_two_answers_that_differ_in_the_noun_alone() -> None:
    for pair in PAIRS:
        asked, other = pair.question, pair.other_question
        assert (asked.prompt, asked.topic) == (other.prompt, other.topic)
        for question, scene in ((asked, pair.scene), (other, pair.other)):
            assert question.answer.lower() == with_article(scene.things[pair.thing]).lower()
        assert asked.answer != other.answer
        first, second = pair.scene.things[pair.thing], pair.other.things[pair.thing]
        assert (first.article, first.number) == (second.article, second.number)
    assert {pair.question.topic for pair in PAIRS} == {"place", "beside"}


def test_both_scenes_keep_to_the_split() -> None:
    for pair in PAIRS:
        assert all(shows_held_out(scene.things, styles(scene)) for scene in (pair.scene, pair.other))
    for pair in scene_pairs(6, split="train"):
        assert not any(shows_held_out(scene.things, styles(scene)) for scene in (pair.scene, pair.other))


def test_items_show_and_ask_what_the_scenes_hold() -> None:
    for pair, shown in zip(PAIRS[:2], minimal_pairs(2), strict=True):
        for item, scene, asked in (
            (shown.item, pair.scene, pair.question),
            (shown.other, pair.other, pair.other_question),
        ):
            assert np.array_equal(np.asarray(item.image), render(scene, about.SIDE))
            assert (item.prompt, item.answer, item.caption) == (asked.prompt, asked.answer, caption(scene))
            assert item.answer in item.choices
            assert item.metric == "answer"
        assert np.array_equal(shown.covered, coverage(pair.scene, about.SIDE)[pair.thing])


def test_the_same_seed_gives_the_same_pairs() -> None:
    assert scene_pairs(3, 7) == scene_pairs(3, 7)
    assert scene_pairs(3, 7) != scene_pairs(3, 8)
    with pytest.raises(ValueError, match="n is 0"):
        scene_pairs(0)
