"""Images of stage `vision` and the words for their regions: things, signs, digits, and bars of charts."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vlalign_utils.data.things.handwriting import draw_digit, written_digits
from vlalign_utils.data.things.month_charts import MONTHS, STEPS, draw_chart, month_charts
from vlalign_utils.data.things.render import render
from vlalign_utils.data.things.scenes import Scene, draw_repeated, draw_scene
from vlalign_utils.data.things.splits import trained_things
from vlalign_utils.data.things.written_signs import WORDS, draw_sign, written_signs
from vlalign_utils.tuning.train_loop import Schedule
from vlalign_utils.zoo.naming_stage import Region, as_batch

NAMES, SIGNS, DIGITS, MONTH_NAMES, HEIGHTS = range(5)  # axes
OTHERS = 0.25  # of the images show no things: a third each of signs, digits and charts
COUNTS = (1, 1, 1, 1, 2, 2, 3, 3, 4)  # of things in a scene
REPEATED = 0.1  # of scenes show one thing several times

Picture = tuple[UInt8[np.ndarray, "side side 3"], list[Region]]


def sizes() -> list[int]:
    """Number of words along each axis."""
    return [len(trained_things()), len(WORDS), 10, len(MONTHS), STEPS]


def naming_batches(
    processor: Any,
    side: int,
    grid: int,
    schedule: Schedule,
    seed: int,
    first: int = 0,
    share: slice = slice(None),
    teacher: Any = None,
) -> Iterator[dict[str, Any]]:
    """Batches of images and regions, from step `first` on; the same step always gets the same batch.

    Args:
        processor: of the model whose tower is trained.
        side: of an image, in pixels.
        grid: side of the square of features that the tower makes of an image.
        schedule: number of steps and of images in a batch.
        seed: of what is drawn.
        first: the first step.
        share: the part of the images that a process takes.
        teacher: processor of the model whose tower is learned from; its `teacher_pixels` are added.
    """
    for step in range(first, schedule.steps):
        seeds = np.random.default_rng([seed, step]).integers(2**31, size=schedule.batch_size)[share]
        shown = [draw(np.random.default_rng(own), side) for own in seeds]
        images = [Image.fromarray(image) for image, _ in shown]
        batch = as_batch(pixels(processor, images), [regions for _, regions in shown], grid)
        yield batch if teacher is None else batch | {"teacher_pixels": pixels(teacher, images)}


def pixels(processor: Any, images: list[Image.Image]) -> Float[Tensor, "images ... height width"]:
    """What a processor makes of images, each an item of its own."""
    found: Tensor = processor.image_processor([[image] for image in images], return_tensors="pt")[
        "pixel_values"
    ]
    return found


def draw(rng: np.random.Generator, side: int) -> Picture:
    """One training image with its regions."""
    if rng.random() >= OTHERS:
        if rng.random() < REPEATED:
            scene = draw_repeated(rng, "train", int(rng.integers(2, 5)))
        else:
            scene = draw_scene(rng, "train", COUNTS[rng.integers(len(COUNTS))])
        return render(scene, side), _named(scene)
    own, which = int(rng.integers(2**31)), rng.integers(3)
    if which == 0:
        sign = next(written_signs(1, own, "train"))
        image, box = draw_sign(sign, side)
        return image, [Region(box, SIGNS, WORDS.index(sign.word))]
    if which == 1:
        digit = next(written_digits(1, own, "train"))
        image, box = draw_digit(digit, side)
        return image, [Region(box, DIGITS, digit.value)]
    chart = next(month_charts(1, own, "train"))
    image, columns = draw_chart(chart, side)
    regions = []
    for box, month, height in zip(columns, chart.months, chart.heights, strict=True):
        regions += [Region(box, MONTH_NAMES, list(MONTHS).index(month)), Region(box, HEIGHTS, height - 1)]
    return image, regions


@cache
def _numbers() -> dict[int, int]:
    """Number of the word that names a thing, by the thing's index."""
    return {thing.index: number for number, thing in enumerate(trained_things())}


def _named(scene: Scene) -> list[Region]:
    found = []
    for placed in scene.placed:
        half = placed.size / 2
        box = (placed.x - half, placed.y - half, placed.x + half, placed.y + half)
        found.append(Region(box, NAMES, _numbers()[placed.index]))
    return found
