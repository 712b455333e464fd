"""Items about the world of things: a question, the image, and what the image shows in words."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlalign_utils.data.items import Item, Make, Metric, Split
from vlalign_utils.data.lenient import normalised
from vlalign_utils.data.things.handwriting import WrittenDigit, draw_digit
from vlalign_utils.data.things.month_charts import MonthChart, draw_chart
from vlalign_utils.data.things.questions import Question
from vlalign_utils.data.things.render import render
from vlalign_utils.data.things.scenes import Scene, draw_scene
from vlalign_utils.data.things.splits import TRAINED_STYLES
from vlalign_utils.data.things.table import Thing
from vlalign_utils.data.things.words import capital, caption, with_article
from vlalign_utils.data.things.written_questions import chart_caption, digit_caption, sign_caption
from vlalign_utils.data.things.written_signs import WrittenSign, draw_sign

SIDE = 320  # of the images, in pixels
CANDIDATES = 20  # that a forced choice is between
YES_NO = ("Yes", "No")

Subject = Scene | WrittenSign | MonthChart | WrittenDigit


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about an image; `guess` is what the best blind rule scores on questions like it."""

    subject: Subject
    question: Question
    choices: tuple[str, ...]
    guess: float
    group: str
    metric: Metric = "answer"
    accepted: tuple[str, ...] = ()

    def item(self, illustrated: bool = True) -> Item:
        """Item with its image, or without one."""
        return Item(
            image=image_of(self.subject) if illustrated else None,
            prompt=self.question.prompt,
            answer=self.question.answer,
            choices=self.choices,
            group=self.group,
            caption=says(self.subject),
            metric=self.metric,
            guess=self.guess,
            accepted=self.accepted,
        )


Ask = Callable[[int, np.random.Generator, Split], Iterable[Asked]]


def illustrated(ask: Ask) -> Make:
    """Items, with their images, of what is asked."""
    return lambda n, rng, split: [asked.item() for asked in ask(n, rng, split)]


def image_of(subject: Subject) -> Image.Image:
    """Image of a subject, `SIDE` pixels wide and high."""
    match subject:
        case Scene():
            return Image.fromarray(render(subject, SIDE))
        case WrittenSign():
            return Image.fromarray(draw_sign(subject, SIDE)[0])
        case MonthChart():
            return Image.fromarray(draw_chart(subject, SIDE)[0])
        case WrittenDigit():
            return Image.fromarray(draw_digit(subject, SIDE)[0])


def says(subject: Subject) -> str:
    """What an image shows, in words."""
    match subject:
        case Scene():
            return caption(subject)
        case WrittenSign():
            return sign_caption(subject)
        case MonthChart():
            return chart_caption(subject)
        case WrittenDigit():
            return digit_caption(subject)


def names(pool: Sequence[Thing]) -> tuple[str, ...]:
    """Names of things as answers."""
    return tuple(capital(with_article(thing)) for thing in pool)


def in_turn(pool: Sequence[Thing], n: int, rng: np.random.Generator) -> Iterator[Thing]:
    """Yield `n` things, in random order, each of the pool before any comes again."""
    order: list[int] = []
    for _ in range(n):
        order = order or rng.permutation(len(pool)).tolist()
        yield pool[order.pop()]


def alone(
    thing: Thing, rng: np.random.Generator, split: Split, styles: Sequence[str] = TRAINED_STYLES
) -> Scene:
    """Scene of this thing alone."""
    return draw_scene(rng, split, 1, among=[thing], styles=styles)


def lined_up(rng: np.random.Generator, split: Split) -> Scene:
    """Scene of two or three things in a row or column."""
    return draw_scene(rng, split, int(rng.integers(2, 4)))


def best_guess(right: Iterable[Iterable[str]]) -> float:
    """Share of the questions for which the most common answer is right; `right` holds the answers of each."""
    each = [{normalised(text) for text in texts} for texts in right]
    return max(Counter(text for texts in each for text in texts).values()) / len(each)


def candidates(
    answer: str, others: Sequence[str], rng: np.random.Generator, n: int = CANDIDATES
) -> tuple[str, ...]:
    """The answer among `n` candidates in random order; the others are drawn without repetition."""
    different = [text for text in dict.fromkeys(others) if text != answer]
    chosen = [answer, *(different[i] for i in rng.choice(len(different), n - 1, replace=False))]
    return tuple(chosen[i] for i in rng.permutation(n))
