import numpy as np
import pytest

from vlalign_utils.data.language import caption
from vlalign_utils.data.minimal_pairs import ScenePair, minimal_pairs, scene_pairs
from vlalign_utils.data.render import CELL, coverage, render
from vlalign_utils.data.scenes import COLUMNS, ROWS, held_out

PAIRS = scene_pairs(60)


@pytest.mark.parametrize("pair", PAIRS[:20])
def test_one_attribute_of_one_thing_differs(pair: ScenePair) -> None:
    differing = [
        (i, name)
        for i, (a, b) in enumerate(zip(pair.scene.things, pair.other.things, strict=True))
        for name in ("form", "colour", "size", "row", "column")
        if getattr(a, name) != getattr(b, name)
    ]
    assert differing == [(pair.thing, pair.topic)]
    assert pair.scene.seed == pair.other.seed
    assert pair.scene.things[pair.thing].is_digit == pair.other.things[pair.thing].is_digit


@pytest.mark.parametrize("pair", PAIRS)
def test_pictures_differ_only_where_the_thing_is(pair: ScenePair) -> None:
    covered = (coverage(pair.scene)[pair.thing] > 0) | (coverage(pair.other)[pair.thing] > 0)
    changed = (render(pair.scene) != render(pair.other)).any(axis=-1)
    assert changed.sum() > 20
    assert not (changed & ~covered).any()
    y, x = (axis.mean() // CELL for axis in changed.nonzero())
    thing = pair.scene.things[pair.thing]
    assert (ROWS[int(y)], COLUMNS[int(x)]) == (thing.row, thing.column)


def test_one_question_has_two_answers_and_names_what_stays() -> None:
    for pair in PAIRS:
        asked, other = pair.question, pair.other_question
        assert asked.text == other.text
        assert asked.answer != other.answer
        assert {asked.answer, other.answer} <= set(asked.choices)
        assert asked.topic == pair.topic


def test_both_scenes_are_held_out_and_things_stay_distinct() -> None:
    for pair in PAIRS:
        for scene in (pair.scene, pair.other):
            assert any(held_out(t.form, t.colour) for t in scene.things)
            assert len({t.form for t in scene.things}) == len({t.colour for t in scene.things})
            assert len({t.colour for t in scene.things}) == len(scene.things)
    for pair in scene_pairs(10, split="train"):
        assert not any(held_out(t.form, t.colour) for s in (pair.scene, pair.other) for t in s.things)


def test_the_same_seed_gives_the_same_pairs() -> None:
    assert scene_pairs(3, 7) == scene_pairs(3, 7)
    assert scene_pairs(3, 7) != scene_pairs(3, 8)
    with pytest.raises(ValueError, match="n is 0"):
        scene_pairs(0)


def test_items_show_and_ask_what_the_scenes_hold() -> None:
    for pair, shown in zip(PAIRS[:5], minimal_pairs(60)[:5], strict=True):
        for item, scene, asked in (
            (shown.item, pair.scene, pair.question),
            (shown.other, pair.other, pair.other_question),
        ):
            assert np.array_equal(np.asarray(item.image), render(scene))
            assert (item.prompt, item.answer) == (asked.text, asked.answer)
            assert item.caption == caption(scene, "en")
        assert np.array_equal(shown.covered, coverage(pair.scene)[pair.thing])
