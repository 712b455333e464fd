"""Suite `kind`: what kind of thing is shown, which only text has taught of half of the things."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.questions import ask_kind
from vlalign_utils.data.things.splits import kind_asked, trained_things
from vlalign_utils.data.things.suites.about import (
    Asked,
    alone,
    best_guess,
    illustrated,
    in_turn,
)
from vlalign_utils.data.things.table import Thing, kinds
from vlalign_utils.data.things.words import accepted_kinds, capital, kind_phrase

GROUPS = {"never asked": False, "asked in training": True}


@cache
def pool(asked: bool) -> Sequence[Thing]:
    """Things of training whose kind training may ask for, or may not."""
    return [thing for thing in trained_things() if kind_asked(thing) is asked]


@cache
def chance(asked: bool) -> float:
    """What always naming the hypernym that is right most often scores."""
    return best_guess((thing.kind, *accepted_kinds(thing)) for thing in pool(asked))


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask for the kind of things of both groups in turn; for "train", of the one that training asks about."""
    groups = list(GROUPS.items())[1 if split == "train" else 0 :]
    turns = {asked: in_turn(pool(asked), n, rng) for _, asked in groups}
    for i in range(n):
        group, asked = groups[i % len(groups)]
        thing = next(turns[asked])
        yield Asked(
            alone(thing, rng, split),
            ask_kind(thing, rng),
            choices=tuple(capital(kind_phrase(kind)) for kind in kinds()),
            guess=chance(asked),
            group=group,
            accepted=accepted_kinds(thing),
        )


SUITE = Suite(
    name="kind",
    mirrors="OK-VQA",
    asks="what kind of thing is shown: knowledge from text, where training never asks for it",
    metric="answer",
    vision_centric=False,
    make=illustrated(ask),
    groups=tuple(GROUPS),
)
