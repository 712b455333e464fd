"""Rendering: deterministic, sharp at every size, and covering what it says."""

import time

import numpy as np
import pytest
from PIL import Image

from vlalign_utils.data.things.backgrounds import paint_background
from vlalign_utils.data.things.render import SIDES, coverage, render
from vlalign_utils.data.things.scenes import Background, Placed, Scene, draw_scene
from vlalign_utils.data.things.sheets import cell
from vlalign_utils.data.things.table import by_name


def _scene(count, seed=0):
    return draw_scene(np.random.default_rng(seed), "train", count, styles=("google",))


@pytest.mark.parametrize("side", [96, 160, 224, 448])
def test_the_same_scene_gives_the_same_pixels(side):
    image = render(_scene(3), side)
    assert image.shape == (side, side, 3)
    assert np.array_equal(image, render(_scene(3), side))
    assert not np.array_equal(image, render(_scene(3, seed=1), side))


@pytest.mark.parametrize("seed", range(4))
def test_a_large_image_reduced_resembles_the_small_one(seed):
    scene = _scene(2, seed)
    large = Image.fromarray(render(scene, 448)).resize((160, 160), Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(large, float) - render(scene, 160))
    assert difference.mean() < 3


def test_a_large_image_is_sharper_than_the_small_one_enlarged():
    plain = Background("plain", ((128, 128, 128), (0, 0, 0)), 0.0, 0.5)
    zebra = Placed(by_name()["zebra"].index, "google", 0.5, 0.5, 0.3, False)
    scene = Scene((zebra,), "alone", plain, 0, "train")
    enlarged = Image.fromarray(render(scene, 96)).resize((448, 448), Image.Resampling.LANCZOS)

    def edges(image):
        grey = np.asarray(image, float).mean(-1)
        return (np.diff(grey, axis=0) ** 2).mean() + (np.diff(grey, axis=1) ** 2).mean()

    assert edges(render(scene, 448)) > 1.3 * edges(enlarged)


@pytest.mark.parametrize("seed", range(4))
def test_coverage_is_where_the_pixels_change(seed):
    scene = _scene(3, seed)
    image, ground = render(scene, 160).astype(int), paint_background(scene.background, 160, scene.seed)
    masks = coverage(scene, 160)
    assert masks.shape == (3, 160, 160)
    assert masks.min() >= 0
    assert masks.sum(0).max() <= 1 + 1e-6
    changed = (image != ground).any(-1)
    assert not (changed & (masks.sum(0) == 0)).any()
    assert (changed[masks.sum(0) > 0.9]).mean() > 0.98  # a colour may happen to be the background's
    for placed, mask in zip(scene.placed, masks, strict=True):
        y, x = (np.average(np.arange(160), weights=mask.sum(axis)) for axis in (1, 0))
        assert abs(x / 160 - placed.x) < 0.4 * placed.size
        assert abs(y / 160 - placed.y) < 0.4 * placed.size


def test_a_drawing_at_its_own_size_is_its_cell_over_the_background():
    plain = Background("plain", ((10, 200, 90), (0, 0, 0)), 0.0, 0.5)
    index = by_name()["fox"].index
    for mirrored in (False, True):
        scene = Scene((Placed(index, "google", 0.5, 0.5, 0.5, mirrored),), "alone", plain, 0, "train")
        drawing = np.asarray(cell(index, "google"), float)[:, :: -1 if mirrored else 1]
        alpha = drawing[..., 3:] / 255
        expected = np.full((256, 256, 3), (10.0, 200.0, 90.0))
        expected[64:192, 64:192] = alpha * drawing[..., :3] + (1 - alpha) * expected[64:192, 64:192]
        assert np.abs(render(scene, 256) - expected).max() <= 1
        assert np.abs(coverage(scene, 256)[0, 64:192, 64:192] - alpha[..., 0]).max() < 1e-6


def test_later_drawings_hide_earlier_ones():
    plain = Background("plain", ((0, 0, 0), (0, 0, 0)), 0.0, 0.5)
    under, over = (Placed(by_name()[n].index, "google", 0.5, 0.5, 0.8, False) for n in ("sun", "earth"))
    masks = coverage(Scene((under, over), "alone", plain, 0, "train"), 128)
    alone = coverage(Scene((over,), "alone", plain, 0, "train"), 128)
    assert np.array_equal(masks[1], alone[0])
    assert masks[0][alone[0] == 1].max() == 0


@pytest.mark.parametrize("side", [SIDES[0] - 1, SIDES[1] + 1])
def test_other_sizes_are_refused(side):
    with pytest.raises(
        ValueError, match=f"side is {side}; scenes of things are rendered at 96 to 448 pixels"
    ):
        render(_scene(1), side)
    with pytest.raises(ValueError, match=f"side is {side}"):
        coverage(_scene(1), side)


@pytest.mark.slow  # a time is taken
def test_rendering_is_fast():
    scenes = [_scene(1 + i % 3, i) for i in range(30)]
    start = time.process_time()
    for scene in scenes:
        render(scene, 160)
    assert (time.process_time() - start) / len(scenes) < 0.01  # 2 ms when the machine is idle
