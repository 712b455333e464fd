"""Suite `unseen`: the name of a thing that no training stage shows, among twenty."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import ask_name
from vlalign_utils.data.things.splits import held_out_things, trained_things
from vlalign_utils.data.things.suites.about import (
    CANDIDATES,
    Asked,
    alone,
    candidates,
    illustrated,
    in_turn,
    names,
)


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask which of twenty names, all of things held out, is the right one; for "train", of other things."""
    pool = held_out_things() if split == "test" else trained_things()
    for thing in in_turn(pool, n, rng):
        question = ask_name(thing, rng)
        yield Asked(
            alone(thing, rng, split),
            question,
            choices=candidates(question.answer, names([t for t in pool if not overlap(t, thing)]), rng),
            guess=1 / CANDIDATES,
            group="unseen things",
            metric="mean choice",
        )


SUITE = Suite(
    name="unseen",
    mirrors="zero-shot ImageNet",
    asks="which of twenty names is that of a thing that no training image shows",
    metric="mean choice",
    vision_centric=True,
    make=illustrated(ask),
)
