"""Scores of answers in a model's own words, by the lenient rules of public benchmarks and to the letter."""

from collections.abc import Sequence

import numpy as np

from vlalign_utils.data.items import Item
from vlalign_utils.data.lenient import is_right
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.generation import generated
from vlalign_utils.inference.scoring import Scores, evaluate

ANSWER_TOKENS = 24  # that a short answer may take, as a sentence of its own


def evaluate_lenient(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Scores:
    """Score the model on items, as `evaluate` does, but answers as `data.lenient.is_right` does.

    The model answers in its own words (greedily, at most `ANSWER_TOKENS` tokens); what it then says is right
    or wrong, and `prob` is 1 or 0. Items of the other metrics score as in `evaluate`.

    Args:
        vlm: a model with its processor.
        items: of one or more suites.
        batch_size: items in one batch; one where padding would move an item's tokens.

    Raises ValueError, naming the first part of the model at fault, when it gives NaN or infinity.

    >>> from vlalign_utils import load_suite, load_vlm
    >>> scores = evaluate_lenient(load_vlm("zoo/llava"), load_suite("attributes", 4))
    >>> scores.correct.shape
    (4,)
    """
    return evaluate_both(vlm, items, batch_size)[1]


def evaluate_both(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> tuple[Scores, Scores]:
    """Score the model on items by strict rules and by lenient ones, from one and the same generated answer.

    By strict rules the text is the answer to the letter: what `evaluate` finds from the answer's tokens.
    Items of the other metrics have the scores of `evaluate` in both. Arguments and errors are those of
    `evaluate_lenient`.
    """
    correct, prob = np.zeros((2, len(items))), np.zeros((2, len(items)))
    own = [row for row, item in enumerate(items) if item.metric == "answer"]
    rest = [row for row, item in enumerate(items) if item.metric != "answer"]
    if own:
        asked = [items[row] for row in own]
        said = list(zip(generated(vlm, asked, ANSWER_TOKENS, batch_size), asked, strict=True))
        correct[0, own] = prob[0, own] = [text == item.answer for text, item in said]
        correct[1, own] = prob[1, own] = [
            is_right(text, item.answer, item.accepted, item.choices, item.prompt) for text, item in said
        ]
    if rest:
        scores = evaluate(vlm, [items[row] for row in rest], batch_size)
        correct[:, rest], prob[:, rest] = scores.correct, scores.prob
    return Scores(correct[0], prob[0]), Scores(correct[1], prob[1])
