import pytest

from vlalign_utils.data.scenes import (
    COLOURS,
    DIGITS,
    FORMS,
    KIND_OF,
    KINDS,
    OWNER_OF,
    OWNERS,
    SHAPES,
    held_out,
    lists,
    scenes,
)


def test_the_same_arguments_give_the_same_scenes_and_other_seeds_give_others():
    assert list(scenes(20, 3, "train")) == list(scenes(20, 3, "train"))
    assert list(scenes(20, 3, "train")) != list(scenes(20, 4, "train"))


def test_things_of_a_scene_differ_in_form_colour_and_quadrant():
    for scene in scenes(300, 0, "test"):
        for key in ("form", "colour"):
            values = [getattr(thing, key) for thing in scene.things]
            assert len(set(values)) == len(values)
        quadrants = [(thing.row, thing.column) for thing in scene.things]
        assert len(set(quadrants)) == len(quadrants)


def test_splits_share_no_scene_because_combinations_are_held_out():
    train = {(t.form, t.colour) for scene in scenes(2000, 0, "train") for t in scene.things}
    assert not any(held_out(*pair) for pair in train)
    for scene in scenes(300, 0, "test"):
        assert any(held_out(t.form, t.colour) for t in scene.things)
    assert len(train) == sum(not held_out(f, c) for f in FORMS for c in COLOURS)  # all others do occur


def test_every_form_and_colour_is_held_out_in_some_but_not_all_combinations():
    for form in FORMS:
        assert sum(held_out(form, colour) for colour in COLOURS) == 1
    for colour in COLOURS:
        assert 0 < sum(held_out(form, colour) for form in FORMS) < len(FORMS)


def test_facts_are_balanced_so_that_guessing_is_a_quarter_or_a_half():
    assert sorted(KIND_OF[shape] for shape in SHAPES) == sorted(KINDS * 2)
    assert sorted(OWNER_OF.values()) == sorted(OWNERS * 2)
    assert [KIND_OF[digit] for digit in DIGITS] == ["even", "odd"] * 5


@pytest.mark.parametrize(("least", "most"), [(0, 1), (2, 1), (1, 4)])
def test_an_impossible_number_of_things_is_refused(least, most):
    with pytest.raises(ValueError, match="1 to 3 things"):
        next(scenes(1, 0, "train", least, most))


def test_number_of_things_stays_within_bounds():
    counts = {len(scene.things) for scene in scenes(100, 0, "train", 2, 3)}
    assert counts == {2, 3}


def test_lists_are_longer_than_scenes_and_hold_no_combination_that_is_held_out():
    worlds = list(lists(200, 0, 3, 7))
    assert worlds == list(lists(200, 0, 3, 7))
    assert {len(world.things) for world in worlds} == {3, 4, 5, 6, 7}
    for world in worlds:
        assert (
            len({t.form for t in world.things}) == len({t.colour for t in world.things}) == len(world.things)
        )
        assert not any(held_out(t.form, t.colour) for t in world.things)
