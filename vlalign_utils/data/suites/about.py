"""Items about the drawn world: one question about each image of a kind, and what blind rules score."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from vlalign_utils.data.items import Item, Make
from vlalign_utils.data.kinds import KINDS, Kind
from vlalign_utils.data.language import LANGUAGES, Language, Question
from vlalign_utils.data.scenes import Split

Ask = Callable[[Any, Language, np.random.Generator], Question]
BLIND = 4000  # questions from which the best blind rule is found


def about(kind: str, ask: Ask) -> Make:
    """Items that ask one question, in either language, about each picture of a kind.

    Chance is what the best blind rule scores: to name always the same of the choices of a topic.
    """

    def questions(subjects: Iterable[Any], rng: np.random.Generator) -> Iterator[tuple[Any, Question]]:
        for subject in subjects:
            yield subject, ask(subject, LANGUAGES[rng.integers(2)], rng)

    @cache
    def blind() -> dict[tuple[str, int], float]:
        rng = np.random.default_rng(0)
        named: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
        for _, question in questions(_pool(kind, int(rng.integers(2**31))), rng):
            named[_rule(question)][question.choices.index(question.answer)] += 1
        return {rule: max(count.values()) / count.total() for rule, count in named.items()}

    def make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
        return [
            replace(item_of(KINDS[kind], subject, question), guess=blind().get(_rule(question)))
            for subject, question in questions(drawn(kind, n, rng, split), rng)
        ]

    return make


@cache  # suites about one kind of picture ask about the same ones
def _pool(kind: str, seed: int) -> tuple[Any, ...]:
    return tuple(KINDS[kind].draw(BLIND, seed, "test"))


def _rule(question: Question) -> tuple[str, int]:
    return question.topic, len(question.choices)


def drawn(kind: str, n: int, rng: np.random.Generator, split: Split) -> Iterator[Any]:
    """Subjects of a kind of picture."""
    return KINDS[kind].draw(n, int(rng.integers(2**31)), split)


def item_of(kind: Kind, subject: Any, question: Question) -> Item:
    """The item that asks this question about this subject; its caption is in English."""
    picture = Image.fromarray(kind.render(subject))
    said = kind.say(subject, "en")
    return Item(picture, question.text, question.answer, question.choices, question.topic, said)
