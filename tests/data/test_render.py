import numpy as np
import pytest
from sklearn.datasets import load_digits

from vlalign_utils.data.render import RGB, digit_items, render, render_digit
from vlalign_utils.data.scenes import COLUMNS, ROWS, SHAPES, Scene, Thing, scenes


def test_pictures_are_reproducible_bytes():
    scene = next(scenes(1, 0, "test"))
    picture = render(scene)
    assert picture.shape == (48, 48, 3)
    assert np.array_equal(picture, render(scene))


@pytest.mark.parametrize("form", [*SHAPES, "three"])
@pytest.mark.parametrize("colour", ["red", "blue", "white"])
def test_a_thing_is_painted_in_its_colour_in_its_quadrant(form, colour):
    for row in ROWS:
        for column in COLUMNS:
            thing = Thing(form, colour, "large", row, column)
            with_thing = render(Scene((thing,), 5, "train")).astype(float)
            near = np.abs(with_thing - RGB[colour]).max(-1) < 60
            half = near.reshape(2, 24, 2, 24).sum((1, 3))
            assert half[ROWS.index(row), COLUMNS.index(column)] > 30
            assert half.sum() - half.max() < 12  # jitter may cross by a pixel, no more


def test_large_things_are_larger_and_forms_look_different():
    def area(size, form="circle"):
        picture = render(Scene((Thing(form, "yellow", size, "top", "left"),), 3, "train")).astype(float)
        return (np.abs(picture - RGB["yellow"]).max(-1) < 60).sum()

    assert area("large") > 2 * area("small")
    assert len({area("large", form) for form in SHAPES}) == len(SHAPES)


def test_digit_splits_are_disjoint_and_complete():
    seen = set()
    for split in ("train", "test"):
        for value, items in digit_items(split).items():
            keys = {(value, item.tobytes()) for item in items}
            assert not keys & seen
            seen |= keys
    originals = {(int(v), (i / 16.0).tobytes()) for v, i in zip(*_digits(), strict=True)}
    assert seen == originals


def _digits():
    data = load_digits()
    return data.target, data.images


def test_a_digit_alone_is_that_item_of_that_split():
    one, other, again = (render_digit(4, i, "test", seed=1) for i in (0, 1, 0))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, render_digit(4, 0, "train", seed=1))
