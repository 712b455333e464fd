"""What a suite is: seeded, held-out items, each scored by one of three metrics, with a caption version."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from vlalign_utils.data.kinds import KINDS, Kind
from vlalign_utils.data.language import LANGUAGES, Language, Question
from vlalign_utils.data.scenes import Split

Metric = Literal["answer", "choice", "caption"]


@dataclass(frozen=True)
class Item:
    """A question with its image; `caption` says in words what the image shows.

    Metric `answer`: the model's own (greedy) answer must be `answer`, which is one of `choices`.
    `choice`: the likeliest of `choices`, read whole, must be `answer`. `caption`: the model's own description
    is compared, attribute by attribute, with `answer`; `choices` is empty. `group` names what the blind rule
    is found over; items without an image ask about text.

    >>> from PIL import Image
    >>> from vlalign_utils import Item
    >>> red = Image.new("RGB", (48, 48), "red")
    >>> item = Item(red, "What colour?", "red", ("red", "blue"), group="colours", caption="It is red.")
    >>> item.chance, item.caption_version().prompt
    (0.5, 'It is red. What colour?')
    """

    image: Image.Image | None
    prompt: str
    answer: str
    choices: tuple[str, ...]
    group: str
    caption: str
    metric: Metric = "answer"
    guess: float | None = None  # what the best blind rule scores, where that is not 1 / choices

    @property
    def chance(self) -> float:
        """Return the mean score of the best blind rule."""
        return 1 / len(self.choices) if self.guess is None else self.guess

    def caption_version(self) -> "Item":
        """Return the item that asks the same question about the caption instead of the image."""
        return replace(self, image=None, prompt=f"{self.caption} {self.prompt}")


Make = Callable[[int, np.random.Generator, Split], list[Item]]


@dataclass(frozen=True)
class Suite:
    """A named set of items. `vision_centric` says that a picture is needed and no fact is."""

    name: str
    mirrors: str  # the public benchmark that asks the same of real photographs
    asks: str
    metric: Metric
    vision_centric: bool
    make: Make


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
