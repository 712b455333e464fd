"""Scenes: reproducible, disjoint by split, and laid out as they say."""

import numpy as np
import pytest

from vlalign_utils.data.things.backgrounds import draw_background, paint_background
from vlalign_utils.data.things.scenes import MOST, draw_repeated, draw_scene, place
from vlalign_utils.data.things.splits import (
    HELD_OUT_STYLE,
    TRAINED_STYLES,
    held_out,
    held_out_number,
    held_out_pair,
    held_out_things,
    trained_things,
)
from vlalign_utils.data.things.table import by_name, things

PATTERNS = {"plain", "gradient", "horizon", "texture", "stripes"}


def _scenes(split, seed, n=12):
    rng = np.random.default_rng(seed)
    drawn = [draw_scene(rng, split, 1 + i % 4) for i in range(n)]
    return drawn + [draw_repeated(rng, split, 1 + i % 4, min(1, 3 - i % 4)) for i in range(n)]


def test_the_same_generator_gives_the_same_scenes_and_another_gives_others():
    assert _scenes("train", 3, 4) == _scenes("train", 3, 4)
    assert _scenes("train", 3, 4) != _scenes("train", 4, 4)


@pytest.mark.parametrize("seed", range(8))
def test_training_scenes_show_nothing_that_is_held_out(seed):
    for scene in _scenes("train", seed):
        assert scene.seed % 2 == 0
        assert not any(map(held_out, scene.things))
        assert all(placed.style in TRAINED_STYLES for placed in scene.placed)
        different = set(scene.things)
        assert not any(held_out_pair(a, b) for a in different for b in different if a.index < b.index)
        assert not any(held_out_number(thing, scene.things.count(thing)) for thing in different)


@pytest.mark.parametrize("seed", range(8))
def test_test_scenes_of_several_things_show_something_held_out(seed):
    for scene in _scenes("test", seed):
        assert scene.seed % 2 == 1
        different = set(scene.things)
        pairs = any(held_out_pair(a, b) for a in different for b in different if a.index < b.index)
        numbers = any(held_out_number(thing, scene.things.count(thing)) for thing in different)
        assert len(scene.placed) == 1 or pairs or numbers


def test_a_held_out_style_and_held_out_things_can_be_asked_for_in_the_test_split_only():
    rng = np.random.default_rng(0)
    scene = draw_scene(rng, "test", 2, among=held_out_things(), styles=(HELD_OUT_STYLE,))
    assert all(map(held_out, scene.things))
    assert {placed.style for placed in scene.placed} == {HELD_OUT_STYLE}
    with pytest.raises(
        ValueError, match="training scenes are drawn in google, fluent3d, fluentflat; got twitter"
    ):
        draw_scene(rng, "train", 1, styles=(HELD_OUT_STYLE,))
    with pytest.raises(ValueError, match="a training scene was asked for among things that are held out"):
        draw_scene(rng, "train", 2, among=held_out_things())


def test_things_of_a_scene_are_different_and_repeated_ones_have_one_style():
    for scene in _scenes("train", 1)[:12]:
        assert len(set(scene.things)) == len(scene.placed)
    rng = np.random.default_rng(1)
    for number in (1, 2, 3, 4):
        scene = draw_repeated(rng, "train", number, 4 - number)
        first = scene.things[0]
        assert scene.things.count(first) == number
        assert len(scene.placed) == 4
        assert first.number == "one"
        assert len({placed.style for placed in scene.placed if placed.thing == first}) == 1


def _boxes(scene):
    return [(p.x - p.size / 2, p.y - p.size / 2, p.x + p.size / 2, p.y + p.size / 2) for p in scene.placed]


@pytest.mark.parametrize("seed", range(6))
def test_drawings_lie_inside_the_image_and_do_not_overlap(seed):
    for scene in _scenes("train", seed):
        boxes = _boxes(scene)
        assert all(min(box) > -0.001 and max(box) < 1.001 for box in boxes)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = (
                    a[2] <= b[0] + 1e-3 or b[2] <= a[0] + 1e-3 or a[3] <= b[1] + 1e-3 or b[3] <= a[1] + 1e-3
                )
                assert apart


def test_rows_go_from_left_to_right_and_columns_from_top_to_bottom():
    rng = np.random.default_rng(2)
    for count in (2, 3):
        row = draw_scene(rng, "train", count, "row").placed
        column = draw_scene(rng, "train", count, "column").placed
        assert [p.x for p in row] == sorted(p.x for p in row)
        assert [p.y for p in column] == sorted(p.y for p in column)


def test_backgrounds_are_varied_and_of_the_size_asked_for():
    rng = np.random.default_rng(0)
    backgrounds = [draw_background(rng) for _ in range(60)]
    assert {background.pattern for background in backgrounds} == PATTERNS
    for background in backgrounds[:20]:
        painted = paint_background(background, 97, 5)
        assert painted.shape == (97, 97, 3)
        assert np.array_equal(painted, paint_background(background, 97, 5))
        assert (np.ptp(painted, (0, 1)).max() > 0) == (background.pattern != "plain")


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(0)
    dog = by_name()["dog"]
    with pytest.raises(ValueError, match="split is 'dev'; expected one of"):
        place.__wrapped__(rng, "dev", [dog], "alone")
    for arrangement, most in MOST.items():
        with pytest.raises(ValueError, match=f"'{arrangement}' holds 1 to {most} things; got {most + 1}"):
            place(rng, "train", [dog] * (most + 1), arrangement)
    with pytest.raises(ValueError, match="3 different things were asked for among 2"):
        draw_scene(rng, "train", 3, among=trained_things()[:2])
    pair = next([a, b] for a in trained_things() for b in trained_things() if held_out_pair(a, b) and a != b)
    with pytest.raises(ValueError, match="no train scene of 2 things among 2: give more things"):
        draw_scene(rng, "train", 2, among=pair)


def test_a_placed_drawing_knows_its_thing():
    scene = place(np.random.default_rng(0), "train", [things()[5]], "alone")
    assert scene.placed[0].thing is things()[5]
