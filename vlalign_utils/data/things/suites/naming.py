"""Suite `naming`: what a thing is, in the styles of training and in the one that is held out."""

from collections.abc import Iterator
from functools import cache

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.questions import ask_name
from vlalign_utils.data.things.splits import HELD_OUT_STYLE, TRAINED_STYLES, trained_things
from vlalign_utils.data.things.suites.about import (
    Asked,
    alone,
    best_guess,
    illustrated,
    in_turn,
    names,
)
from vlalign_utils.data.things.table import things
from vlalign_utils.data.things.words import accepted_names

STYLES = {"trained styles": TRAINED_STYLES, "held-out style": (HELD_OUT_STYLE,)}


@cache
def every_name() -> tuple[str, ...]:
    """Names of all things, as answers."""
    return names(things())


@cache
def chance() -> float:
    """Share of the things that one name names: what the best blind answer scores."""
    return best_guess(accepted_names(thing) for thing in trained_things())


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask for the name of each thing in a trained style, then in the held-out one (not for "train")."""
    groups = list(STYLES.items())[: 1 if split == "train" else 2]
    turns = in_turn(trained_things(), n, rng)
    thing = next(turns)
    for i in range(n):
        group, styles = groups[i % len(groups)]
        if i and not i % len(groups):
            thing = next(turns)
        yield Asked(
            alone(thing, rng, split, styles),
            ask_name(thing, rng),
            choices=every_name(),
            guess=chance(),
            group=group,
            accepted=accepted_names(thing),
        )


SUITE = Suite(
    name="naming",
    mirrors="ImageNet-R",
    asks="what the only thing of an image is",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
    groups=tuple(STYLES),
)
