"""Items of the suites as batches for a model, and how models score on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from scipy.special import softmax
from torch import Tensor

from vlalign_utils.data.caption_scores import agreement
from vlalign_utils.data.suites import Item
from vlalign_utils.driver.finite import check_logits
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import above_chance, bootstrap_mean
from vlalign_utils.inference.answers import answer_mask
from vlalign_utils.inference.batching import exact_batches, length_sorted


@dataclass(frozen=True)
class Scores:
    """Per item: how right the model is, and the probability that it gives the right answer.

    `correct` is 1 or 0; for descriptions it is the share of attributes that are right, and so is `prob`.
    """

    correct: Float[np.ndarray, "items"]
    prob: Float[np.ndarray, "items"]


@dataclass(frozen=True)
class Batch:
    """Items ready for the model: which rows they are, the inputs, and the answer's token ids in place.

    `answers` holds the id of each answer token (its end included) at its own position, -1 elsewhere.
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    answers: Int[Tensor, "batch tokens"]


def batches(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Iterator[Batch]:
    """Items in batches of like length, with or without images, left padded and on the model's device."""
    for rows in _like(items, batch_size):
        yield as_batch(vlm, items, rows)


def evaluation_batches(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Iterator[Batch]:
    """Yield `batches`, or each item alone in a model where padding or other items would move its tokens."""
    for rows in exact_batches(vlm, _like(items, batch_size)):
        yield as_batch(vlm, items, rows)


def as_batch(vlm: VLM, items: Sequence[Item], rows: Sequence[int]) -> Batch:
    """These rows of the items as one batch, in this order; all have an image, or none."""
    chosen = [items[row] for row in rows]
    prompts, images, answers = [i.prompt for i in chosen], _images(chosen), [i.answer for i in chosen]
    inputs = vlm.prepare(prompts, images, answers)
    mask = answer_mask(vlm, inputs, prompts, images, answers)
    return Batch(list(rows), inputs, inputs["input_ids"].masked_fill(~mask, -1))


def _images(items: Sequence[Item]) -> list[Image.Image] | None:
    return [item.image for item in items if item.image is not None] or None


def _like(items: Sequence[Item], batch_size: int) -> list[list[int]]:
    """Rows of items with images, then without, in batches of like length."""
    blind = [item.image is None for item in items]
    lengths = [(blind[i], len(item.prompt) + len(item.answer)) for i, item in enumerate(items)]
    # The shortest first, as in the studies on record: their batches, and so their numbers, are in this order.
    return length_sorted(lengths, batch_size, blind, longest_first=False)


_CAUSES = {
    torch.float16: "numbers overflowed half precision, or weights, inputs or edits hold NaN or infinity; "
    'load the model with dtype="bfloat16" or "float32"'
}


def answer_scores(
    logits: Float[Tensor, "batch tokens vocabulary"], answers: Int[Tensor, "batch tokens"]
) -> Scores:
    """Score the answers in place: a row is correct when every answer token is the most likely one.

    That is what greedy decoding, started after the prompt, would answer; `prob` is the product of the
    probabilities of the answer's tokens. Raises ValueError when a logit that decides is no finite number.
    """
    correct, log_prob = _read(logits, answers)
    return Scores(correct, np.exp(log_prob))


def _read(
    logits: Float[Tensor, "batch tokens vocabulary"], answers: Int[Tensor, "batch tokens"]
) -> tuple[Float[np.ndarray, "batch"], Float[np.ndarray, "batch"]]:
    """Whether each answer is the greedy one, and its log probability."""
    target, ahead = answers[:, 1:], logits[:, :-1].float()
    inside = target >= 0
    token = target.clamp(min=0)
    each = ahead.log_softmax(-1).gather(-1, token[..., None])[..., 0].masked_fill(~inside, 0)
    # A NaN or an infinity anywhere in a position's logits is one here; a token that a model rules out is not.
    if not each.isfinite().all():
        row = int((~each.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"the logits at the answer of row {row} of a batch are not finite numbers ({logits.dtype}): "
            + _CAUSES.get(logits.dtype, "weights, inputs or edits hold NaN or infinity")
        )
    log_prob = each.sum(1)
    correct = ((ahead.argmax(-1) == token) | ~inside).all(1)
    return correct.double().cpu().numpy(), log_prob.double().cpu().numpy()


def evaluate(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Scores:
    """Score the model on items, each by its own metric, in their order.

    Args:
        vlm: a model with its processor.
        items: of one or more suites.
        batch_size: items in one forward; one where padding would move an item's tokens.

    Returns `Scores` [items]: how right the model is, and the probability of the right answer.

    Raises ValueError, naming the first part of the model at fault, when it gives NaN or infinity.

    >>> from vlalign_utils import evaluate, load_suite, load_vlm
    >>> scores = evaluate(load_vlm("zoo/llava"), load_suite("attributes", 4))
    >>> scores.correct.shape, bool((scores.prob <= 1).all())
    ((4,), True)
    """
    correct, prob = np.zeros(len(items)), np.zeros(len(items))
    by_metric = {"answer": _answered, "choice": _chosen, "caption": _described}
    for metric, score in by_metric.items():
        rows = [row for row, item in enumerate(items) if item.metric == metric]
        if rows:
            scores = score(vlm, [items[row] for row in rows], batch_size)
            correct[rows], prob[rows] = scores.correct, scores.prob
    return Scores(correct, prob)


def informative(scores: Scores, items: Sequence[Item], seed: int = 0) -> bool:
    """Whether a model is above chance on these items: otherwise it has nothing to lose on them.

    The rule: the 95 % bootstrap interval of the normalised score lies above 0.
    """
    chance = np.array([item.chance for item in items])
    return bootstrap_mean(above_chance(scores.correct, chance), seed).low > 0


def _answered(vlm: VLM, items: Sequence[Item], batch_size: int) -> Scores:
    correct, log_prob = _likely(vlm, items, batch_size)
    return Scores(correct, np.exp(log_prob))


@torch.no_grad()
def _likely(
    vlm: VLM, items: Sequence[Item], batch_size: int
) -> tuple[Float[np.ndarray, "items"], Float[np.ndarray, "items"]]:
    correct, log_prob = np.zeros(len(items)), np.zeros(len(items))
    for batch in evaluation_batches(vlm, items, batch_size):
        logits = vlm.model(**batch.inputs, use_cache=False).logits
        check_logits(vlm.anatomy, batch.inputs, logits)
        # A model may put image features before the text without placeholders: answers count from the right.
        text = logits[:, -batch.answers.shape[1] :]
        correct[batch.rows], log_prob[batch.rows] = _read(text, batch.answers)
    return correct, log_prob


def _chosen(vlm: VLM, items: Sequence[Item], batch_size: int) -> Scores:
    """Every choice is read as if it were the answer; the likeliest is chosen."""
    options = [replace(item, answer=choice) for item in items for choice in item.choices]
    likely = iter(_likely(vlm, options, batch_size)[1])
    correct, prob = np.zeros(len(items)), np.zeros(len(items))
    for row, item in enumerate(items):
        own = np.array([next(likely) for _ in item.choices])
        right = item.choices.index(item.answer)
        correct[row] = own[right] > np.delete(own, right).max()
        prob[row] = softmax(own)[right]
    return Scores(correct, prob)


def _described(vlm: VLM, items: Sequence[Item], batch_size: int) -> Scores:
    said = descriptions(vlm, items, batch_size)
    right = np.array([agreement(text, item.answer).mean for text, item in zip(said, items, strict=True)])
    return Scores(right, right)


@torch.no_grad()
def descriptions(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> list[str]:
    """What the model itself (greedily) says to each item, in their order."""
    said = [""] * len(items)
    longest = max(len(vlm.tokenizer(item.answer)["input_ids"]) for item in items)
    for rows in exact_batches(vlm, _like(items, batch_size)):
        chosen = [items[row] for row in rows]
        inputs = vlm.prepare([item.prompt for item in chosen], _images(chosen))
        out = vlm.model.generate(
            **inputs,
            max_new_tokens=2 * longest,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        check_logits(vlm.anatomy, inputs, out.logits[0][:, None])
        said_ids = out.sequences[:, inputs["input_ids"].shape[1] :]
        texts = vlm.tokenizer.batch_decode(said_ids, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            said[row] = text.strip()
    return said
