"""Items of the suites as batches for a model, and how models score on them by strict rules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor

from vlalign_utils.data.caption_scores import agreement, cider
from vlalign_utils.data.items import Item, Metric
from vlalign_utils.driver.finite import check_logits
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import above_chance, bootstrap_mean
from vlalign_utils.inference import shared_prompt
from vlalign_utils.inference.answers import answer_mask
from vlalign_utils.inference.batching import exact_batches
from vlalign_utils.inference.generation import generated, images_of, like_rows
from vlalign_utils.inference.shared_prompt import Likelihoods

SHARED_FROM = 4  # choices: sharing the prompt of fewer saves less than finding out whether it can be shared


@dataclass(frozen=True)
class Scores:
    """Per item: how right the model is, and the probability that it gives the right answer.

    `correct` is 1 or 0. For descriptions it is the share of attributes that are right, or CIDEr / 10, and
    `prob` is the same.
    """

    correct: Float[np.ndarray, " items"]
    prob: Float[np.ndarray, " items"]


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
    for rows in like_rows(items, batch_size):
        yield as_batch(vlm, items, rows)


def evaluation_batches(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> Iterator[Batch]:
    """Yield `batches`, or each item alone in a model where padding or other items would move its tokens."""
    for rows in exact_batches(vlm, like_rows(items, batch_size)):
        yield as_batch(vlm, items, rows)


def as_batch(vlm: VLM, items: Sequence[Item], rows: Sequence[int]) -> Batch:
    """These rows of the items as one batch, in this order; all have an image, or none."""
    chosen = [items[row] for row in rows]
    prompts, images, answers = [i.prompt for i in chosen], images_of(chosen), [i.answer for i in chosen]
    inputs = vlm.prepare(prompts, images, answers)
    mask = answer_mask(vlm, inputs, prompts, images, answers)
    return Batch(list(rows), inputs, inputs["input_ids"].masked_fill(~mask, -1))


def tokens_read(answers: Int[Tensor, "batch tokens"]) -> int:
    """Number of last tokens that hold all answers and the token before each: no other logits are read."""
    return answers.shape[1] - int((answers >= 0).any(0).int().argmax()) + 1


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
) -> tuple[Float[np.ndarray, " batch"], Float[np.ndarray, " batch"]]:
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
    for metric, score in BY_METRIC.items():
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
    correct, log_prob, _ = _likely(vlm, items, batch_size)
    return Scores(correct, np.exp(log_prob))


@torch.no_grad()
def _likely(
    vlm: VLM, items: Sequence[Item], batch_size: int
) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, " items"], Float[np.ndarray, " items"]]:
    """Whether each answer is the greedy one, its log probability, and its number of tokens."""
    correct, log_prob, tokens = (np.zeros(len(items)) for _ in range(3))
    for batch in evaluation_batches(vlm, items, batch_size):
        logits = vlm.model(**batch.inputs, use_cache=False).logits
        check_logits(vlm.anatomy, batch.inputs, logits)
        # A model may put image features before the text without placeholders: answers count from the right.
        last = slice(-tokens_read(batch.answers), None)
        correct[batch.rows], log_prob[batch.rows] = _read(logits[:, last], batch.answers[:, last])
        tokens[batch.rows] = (batch.answers[:, 1:] >= 0).sum(1).cpu().numpy()
    return correct, log_prob, tokens


def _chosen(vlm: VLM, items: Sequence[Item], batch_size: int, by_token: bool = False) -> Scores:
    """Every choice is read as if it were the answer; the likeliest, or the likeliest by token, is chosen."""
    correct, prob = np.zeros(len(items)), np.zeros(len(items))
    for row, (item, found) in enumerate(zip(items, _likelihoods(vlm, items, batch_size), strict=True)):
        own = found.log_prob / found.tokens if by_token else found.log_prob
        right = item.choices.index(item.answer)
        correct[row] = own[right] > np.delete(own, right).max()
        prob[row] = softmax(own)[right]
    return Scores(correct, prob)


def _likelihoods(vlm: VLM, items: Sequence[Item], batch_size: int) -> list[Likelihoods]:
    """Likelihoods of every item's choices; those of many choices share its prompt where the model can."""
    found: dict[int, Likelihoods] = {}
    many = [row for row, item in enumerate(items) if len(item.choices) >= SHARED_FROM]
    if many:
        (first,) = likelihoods_apart(vlm, [items[many[0]]], batch_size)
        if shared_prompt.agrees(vlm, items[many[0]], first):
            shared = shared_prompt.likelihoods(vlm, [items[row] for row in many], batch_size)
            found |= zip(many, shared, strict=True)
    rest = [row for row in range(len(items)) if row not in found]
    found |= zip(rest, likelihoods_apart(vlm, [items[row] for row in rest], batch_size), strict=True)
    return [found[row] for row in range(len(items))]


def likelihoods_apart(vlm: VLM, items: Sequence[Item], batch_size: int) -> list[Likelihoods]:
    """Likelihoods of every item's choices, each read with a prompt and an image of its own."""
    options = [replace(item, answer=choice) for item in items for choice in item.choices]
    _, log_prob, tokens = _likely(vlm, options, batch_size)
    ends = np.cumsum([len(item.choices) for item in items])
    parts = zip(np.split(log_prob, ends), np.split(tokens, ends), strict=True)
    return [Likelihoods(*own) for own, _ in zip(parts, items, strict=False)]  # the last part is empty


def _described(vlm: VLM, items: Sequence[Item], batch_size: int) -> Scores:
    said = descriptions(vlm, items, batch_size)
    right = np.array([agreement(text, item.answer).mean for text, item in zip(said, items, strict=True)])
    return Scores(right, right)


def _compared(vlm: VLM, items: Sequence[Item], batch_size: int) -> Scores:
    """CIDEr-D of descriptions, divided by the 10 that it gives the same words."""
    said = descriptions(vlm, items, batch_size)
    right = cider(said, [[item.answer, *item.accepted] for item in items]) / 10
    return Scores(right, right)


BY_METRIC: Mapping[Metric, Callable[[VLM, Sequence[Item], int], Scores]] = {
    "answer": _answered,
    "choice": _chosen,
    "mean choice": partial(_chosen, by_token=True),
    "caption": _described,
    "cider": _compared,
}


def descriptions(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> list[str]:
    """What the model itself (greedily) says to each item, in their order."""
    longest = max(len(vlm.tokenizer(item.answer)["input_ids"]) for item in items)
    return generated(vlm, items, 2 * longest, batch_size)
