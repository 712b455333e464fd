"""Suite `existence`: yes or no, balanced; what is not there is of the kind of what is."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import ask_exists
from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.splits import held_out_pair, trained_things
from vlalign_utils.data.things.suites.about import YES_NO, Asked, illustrated, lined_up
from vlalign_utils.data.things.table import Thing


def alike(thing: Thing, scene: Scene, rng: np.random.Generator) -> Thing:
    """Thing of training that the scene does not show, of the same kind as one that it shows.

    None that may be called by the name of a shown thing; where the kind has no other, of any kind. With what
    a training scene shows it makes no held-out pair: the answer would always be no.
    """
    absent = [t for t in trained_things() if not any(overlap(t, shown) for shown in scene.things)]
    if scene.split == "train":
        absent = [t for t in absent if not any(held_out_pair(t, shown) for shown in scene.things)]
    same = [t for t in absent if t.kind == thing.kind] or absent
    return same[rng.integers(len(same))]


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask whether a thing is there."""
    for _ in range(n):
        scene = lined_up(rng, split)
        one, present = scene.things[rng.integers(len(scene.things))], bool(rng.integers(2))
        asked = one if present else alike(one, scene, rng)
        yield Asked(scene, ask_exists(asked, present, rng), YES_NO, guess=1 / 2, group="exists")


SUITE = Suite(
    name="existence",
    mirrors="POPE",
    asks="whether a thing is there, or only another one of its kind",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
)
