"""Suite `captions`: the model's own description, compared with several by CIDEr."""

from collections.abc import Iterator
from functools import cache

import numpy as np

from vlalign_utils.data.caption_scores import cider
from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.descriptions import wordings
from vlalign_utils.data.things.questions import ask_caption
from vlalign_utils.data.things.scenes import Scene, draw_scene
from vlalign_utils.data.things.suites.about import Asked, illustrated

PAIRS = 200  # of scenes, by which chance is found
MOST = 3  # things


def _scene(rng: np.random.Generator, split: Split) -> Scene:
    return draw_scene(rng, split, int(rng.integers(1, MOST + 1)))


@cache
def chance() -> float:
    """What the description of another image scores, on average."""
    rng = np.random.default_rng(0)
    scenes = [wordings(_scene(rng, "test")) for _ in range(PAIRS)]
    return float(cider([said[0] for said in scenes], [*scenes[1:], scenes[0]]).mean() / 10)


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask for a description of one to three things."""
    for _ in range(n):
        scene = _scene(rng, split)
        said, *others = wordings(scene)
        yield Asked(
            scene,
            ask_caption(said, rng),
            choices=(),
            guess=chance(),
            group="describe",
            metric="cider",
            accepted=tuple(others),
        )


SUITE = Suite(
    name="captions",
    mirrors="COCO captions",
    asks="a description of one to three things and where they are, in one sentence",
    metric="cider",
    vision_centric=False,
    make=illustrated(ask),
)
