"""Suite `compositional`: two captions, one of them true: things have changed places, or one is another."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import ask_caption
from vlalign_utils.data.things.scenes import Scene, draw_scene, place
from vlalign_utils.data.things.splits import held_out_pair, trained_things
from vlalign_utils.data.things.suites.about import Asked, illustrated
from vlalign_utils.data.things.table import Thing
from vlalign_utils.data.things.words import caption


def replaced(scene: Scene, at: int, rng: np.random.Generator) -> list[Thing] | None:
    """Things of a scene of two of which one is another of its kind, or None where there is no such thing.

    The new pair is held out from training, or is not, as the true one is: text alone must not tell.
    """
    old, kept = scene.things[at], scene.things[1 - at]
    known = [
        t
        for t in trained_things()
        if t.kind == old.kind and not any(overlap(t, shown) for shown in scene.things)
    ]
    alike = [t for t in known if held_out_pair(t, kept) == held_out_pair(old, kept)]
    if not alike:
        return None
    new = alike[rng.integers(len(alike))]
    return [new, kept] if at == 0 else [kept, new]


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask for a description; the choices are the caption and a false one, by place and by thing in turn."""
    done = 0
    while done < n:
        scene = draw_scene(rng, split, 2)
        swap = done % 2 == 0
        shown = list(reversed(scene.things)) if swap else replaced(scene, int(rng.integers(2)), rng)
        if shown is None:
            continue
        false = caption(place(rng, split, shown, scene.arrangement))
        true = caption(scene)
        yield Asked(
            scene,
            ask_caption(true, rng),
            choices=(true, false),
            guess=1 / 2,
            group="place" if swap else "thing",
            metric="mean choice",
        )
        done += 1


SUITE = Suite(
    name="compositional",
    mirrors="SugarCrepe",
    asks="which of two captions is true: two things have changed places, or one is another of its kind",
    metric="mean choice",
    vision_centric=False,
    make=illustrated(ask),
)
