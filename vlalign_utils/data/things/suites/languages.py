"""Suite `languages`: what a thing is called in German, French, Spanish or Italian, among twenty names."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import LANGUAGE_NAMES, ask_language
from vlalign_utils.data.things.splits import trained_things
from vlalign_utils.data.things.suites.about import (
    CANDIDATES,
    Asked,
    alone,
    candidates,
    illustrated,
    in_turn,
)
from vlalign_utils.data.things.table import Thing


@cache
def pool(language: str) -> Sequence[Thing]:
    """Things of training whose name in this language is not the English one."""
    return [t for t in trained_things() if t.name_in(language).lower() != t.name.lower()]


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask for names in all languages in turn; the candidates are names in the language asked for."""
    turns = {language: in_turn(pool(language), n, rng) for language in LANGUAGE_NAMES}
    for i in range(n):
        language = list(turns)[i % len(turns)]
        thing = next(turns[language])
        question = ask_language(thing, language, rng)
        others = [t.name_in(language) for t in pool(language) if not overlap(t, thing)]
        yield Asked(
            alone(thing, rng, split),
            question,
            choices=candidates(question.answer, others, rng),
            guess=1 / CANDIDATES,
            group=LANGUAGE_NAMES[language],
            metric="mean choice",
        )


SUITE = Suite(
    name="languages",
    mirrors="XM3600",
    asks="which of twenty names in another language is that of a thing",
    metric="mean choice",
    vision_centric=False,
    make=illustrated(ask),
)
