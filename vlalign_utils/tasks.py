"""Benchmarks: suites of items with a picture, a question and its one right answer, and how models score.

Every suite is seeded and held out: its scenes show form-colour combinations, and its digits handwriting,
that no training picture shows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from vlalign_utils.data.documents import LOOKUPS
from vlalign_utils.data.language import (
    LANGUAGES,
    Question,
    ask_count,
    ask_digit,
    ask_exists,
    ask_thing,
    caption,
)
from vlalign_utils.data.render import render, render_digit
from vlalign_utils.data.world import DIGITS, Scene, Split, scenes
from vlalign_utils.models import VLM


@dataclass(frozen=True)
class Item:
    """A question with its picture, or with a caption inside the prompt when `image` is None."""

    image: Image.Image | None
    prompt: str
    answer: str
    choices: tuple[str, ...]
    group: str
    caption: str

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the choices."""
        return 1 / len(self.choices)


@dataclass(frozen=True)
class Suite:
    """A named set of items. `vision_centric` says that a picture is needed and no fact is."""

    name: str
    asks: str
    make: Callable[[int, np.random.Generator, Split], list[Item]]
    vision_centric: bool


@dataclass(frozen=True)
class Scores:
    """Per item: whether the answer is the model's greedy one, and the probability it gives it."""

    correct: Bool[np.ndarray, "items"]
    prob: Float[np.ndarray, "items"]


Asker = Callable[[Scene, np.random.Generator], Question]


def _on_scenes(
    ask: Asker, on_captions: bool = False
) -> Callable[[int, np.random.Generator, Split], list[Item]]:
    def make(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
        items = []
        for scene in scenes(n, int(rng.integers(2**31)), split):
            question, text = ask(scene, rng), caption(scene, "en")
            image = None if on_captions else Image.fromarray(render(scene))
            prompt = f"{text} {question.text}" if on_captions else question.text
            items.append(Item(image, prompt, question.answer, question.choices, question.topic, text))
        return items

    return make


def _digits(n: int, rng: np.random.Generator, split: Split) -> list[Item]:
    items = []
    for i in range(n):
        question = ask_digit(i % 10, LANGUAGES[rng.integers(2)])
        image = Image.fromarray(render_digit(i % 10, i // 10, split, int(rng.integers(2**31))))
        items.append(Item(image, question.text, question.answer, question.choices, "digit", DIGITS[i % 10]))
    return items


def _one_of(topics: tuple[str, ...]) -> Asker:
    def ask(scene: Scene, rng: np.random.Generator) -> Question:
        topic, language = topics[rng.integers(len(topics))], LANGUAGES[rng.integers(2)]
        if topic == "exists":
            return ask_exists(scene, language, rng)
        return ask_count(scene, language, rng) if topic == "count" else ask_thing(scene, topic, language, rng)

    return ask


SUITES = {
    suite.name: suite
    for suite in (
        Suite("attributes", "colour, form, size or place of one thing", _on_scenes(_one_of(LOOKUPS)), True),
        Suite("existence", "whether a form of a colour is there", _on_scenes(_one_of(("exists",))), True),
        Suite("counting", "how many things, or of one size", _on_scenes(_one_of(("count",))), True),
        Suite("digits", "which handwritten digit is shown alone", _digits, True),
        Suite(
            "knowledge",
            "a fact only text taught, asked about a picture",
            _on_scenes(_one_of(("kind", "owner"))),
            False,
        ),
        Suite(
            "text",
            "all of these, and facts, asked about a caption",
            _on_scenes(_one_of((*LOOKUPS, "exists", "count", "kind", "owner")), on_captions=True),
            False,
        ),
    )
}


def load(name: str, n: int, seed: int = 0, split: Split = "test") -> list[Item]:
    """`n` items of a suite; the same arguments always give the same items.

    Raises ValueError for an unknown suite or a number below one.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    if n < 1:
        raise ValueError(f"n is {n}; a suite needs at least one item")
    rng = np.random.default_rng([seed, list(SUITES).index(name)])
    return SUITES[name].make(n, rng, split)


@dataclass(frozen=True)
class Batch:
    """Items ready for the model: which rows they are, the inputs, and the answer's token ids in place.

    `answers` holds the id of each answer token (its end included) at its own position, -1 elsewhere.
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    answers: Int[Tensor, "batch tokens"]


def batches(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Iterator[Batch]:
    """Items in batches of like length, with or without pictures, left padded and on the model's device."""

    def key(row: int) -> tuple[bool, int]:
        return items[row].image is None, len(items[row].prompt)

    for blind, group in groupby(sorted(range(len(items)), key=key), lambda row: key(row)[0]):
        ordered = list(group)
        for start in range(0, len(ordered), batch_size):
            rows = ordered[start : start + batch_size]
            chosen = [items[row] for row in rows]
            images = None if blind else [item.image for item in chosen if item.image is not None]
            inputs = vlm.prepare([i.prompt for i in chosen], images, [i.answer for i in chosen])
            yield Batch(rows, inputs, _answers(vlm, inputs["input_ids"], chosen))


def _answers(vlm: VLM, ids: Int[Tensor, "batch tokens"], items: list[Item]) -> Int[Tensor, "batch tokens"]:
    eos = vlm.tokenizer.eos_token
    lengths = [len(vlm.tokenizer(i.answer + eos, add_special_tokens=False)["input_ids"]) for i in items]
    # Left padding: the answer is the last `length` tokens of its row.
    from_end = torch.arange(ids.shape[1], 0, -1, device=ids.device)
    inside = from_end[None, :] <= torch.tensor(lengths, device=ids.device)[:, None]
    return ids.masked_fill(~inside, -1)


def answer_scores(
    logits: Float[Tensor, "batch tokens vocabulary"], answers: Int[Tensor, "batch tokens"]
) -> Scores:
    """Score the answers in place: a row is correct when every answer token is the most likely one.

    That is what greedy decoding, started after the prompt, would answer; `prob` is the product of the
    probabilities of the answer's tokens.
    """
    target, ahead = answers[:, 1:], logits[:, :-1].float()
    inside = target >= 0
    token = target.clamp(min=0)
    log_prob = ahead.log_softmax(-1).gather(-1, token[..., None])[..., 0].masked_fill(~inside, 0).sum(1)
    correct = ((ahead.argmax(-1) == token) | ~inside).all(1)
    return Scores(correct.cpu().numpy(), log_prob.exp().double().cpu().numpy())


@torch.no_grad()
def evaluate(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Scores:
    """Score the model on items, in their order."""
    correct, prob = np.zeros(len(items), dtype=bool), np.zeros(len(items))
    for batch in batches(vlm, items, batch_size):
        scores = answer_scores(vlm.model(**batch.inputs, use_cache=False).logits, batch.answers)
        correct[batch.rows], prob[batch.rows] = scores.correct, scores.prob
    return Scores(correct, prob)
