"""Training data of stages `aligned` and `tuned`: captions, then several questions about every image.

Each example is drawn from a generator of its own: the same one of the same step is always the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlalign_utils.data.things.handwriting import draw_digit, written_digits
from vlalign_utils.data.things.month_charts import draw_chart, month_charts
from vlalign_utils.data.things.questions import Question, ask_caption
from vlalign_utils.data.things.render import render
from vlalign_utils.data.things.scene_questions import questions_about
from vlalign_utils.data.things.scenes import Scene, draw_repeated, draw_scene
from vlalign_utils.data.things.words import caption
from vlalign_utils.data.things.written_questions import (
    ask_bars,
    ask_digit,
    ask_extreme,
    ask_higher,
    ask_sign,
    chart_caption,
    digit_caption,
    sign_caption,
)
from vlalign_utils.data.things.written_signs import draw_sign, written_signs
from vlalign_utils.zoo.answering import Example

# Kinds of images and their shares.
# Stage `aligned` sees things mostly alone: a connector gives no token another's place, and the language model
# does not yet read places from image tokens.
CAPTIONED = {"single": 0.65, "scene": 0.25, "sign": 0.03, "digit": 0.04, "chart": 0.03}
ASKED = {"scene": 0.66, "repeated": 0.13, "sign": 0.06, "digit": 0.08, "chart": 0.07}
COUNTS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4)  # things in a scene
TEXT = 0.15  # of the examples of stage `tuned` have the caption in the place of the image
QUESTIONS = 4  # about an image


@dataclass(frozen=True)
class Subject:
    """What an image shows: how it is drawn at a size, its caption, what may be asked about it."""

    draw: Callable[[int], UInt8[np.ndarray, "side side 3"]]
    caption: str
    questions: list[Question]

    def image(self, side: int) -> Image.Image:
        """The image, `side` pixels wide and high."""
        return Image.fromarray(self.draw(side))


def captioned(n: int, seed: int, step: int, side: int) -> list[Example]:
    """Examples of stage `aligned` at a step: one caption for each image, `side` pixels wide and high."""
    examples = []
    for rng in _generators(n, seed, step):
        subject = _subject(CAPTIONED, rng)
        examples.append(Example(subject.image(side), (ask_caption(subject.caption, rng),)))
    return examples


def questioned(n: int, seed: int, step: int, side: int) -> list[Example]:
    """Examples of stage `tuned` at a step: up to four questions about each image, or about its caption."""
    examples = []
    for rng in _generators(n, seed, step):
        subject = _subject(ASKED, rng)
        asked = [*subject.questions, ask_caption(subject.caption, rng)]
        blind = rng.random() < TEXT
        if blind:
            asked = [Question(q.topic, f"{subject.caption} {q.prompt}", q.answer) for q in subject.questions]
        chosen = tuple(asked[i] for i in rng.permutation(len(asked))[:QUESTIONS])
        examples.append(Example(None if blind else subject.image(side), chosen))
    return examples


def _subject(shares: Mapping[str, float], rng: np.random.Generator) -> Subject:
    return KINDS[list(shares)[rng.choice(len(shares), p=list(shares.values()))]](rng)


def _generators(n: int, seed: int, step: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, step, number]) for number in range(n)]


def _single(rng: np.random.Generator) -> Subject:
    return _about(draw_scene(rng, "train", 1), rng)


def _scene(rng: np.random.Generator) -> Subject:
    return _about(draw_scene(rng, "train", COUNTS[rng.integers(len(COUNTS))]), rng)


def _repeated(rng: np.random.Generator) -> Subject:
    number = int(rng.integers(2, 5))
    return _about(draw_repeated(rng, "train", number, int(rng.integers(0, 5 - number))), rng)


def _about(scene: Scene, rng: np.random.Generator) -> Subject:
    return Subject(partial(render, scene), caption(scene), questions_about(scene, rng))


def _sign(rng: np.random.Generator) -> Subject:
    sign = next(written_signs(1, int(rng.integers(2**31)), "train"))
    return Subject(lambda side: draw_sign(sign, side)[0], sign_caption(sign), [ask_sign(sign, rng)])


def _digit(rng: np.random.Generator) -> Subject:
    digit = next(written_digits(1, int(rng.integers(2**31)), "train"))
    return Subject(lambda side: draw_digit(digit, side)[0], digit_caption(digit), [ask_digit(digit, rng)])


def _chart(rng: np.random.Generator) -> Subject:
    chart = next(month_charts(1, int(rng.integers(2**31)), "train"))
    asked = [ask(chart, rng) for ask in (ask_extreme, ask_higher, ask_bars)]
    return Subject(lambda side: draw_chart(chart, side)[0], chart_caption(chart), asked)


KINDS = {
    "single": _single,
    "scene": _scene,
    "repeated": _repeated,
    "sign": _sign,
    "digit": _digit,
    "chart": _chart,
}
