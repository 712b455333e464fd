"""Likelihoods of many answers to one prompt: prompt and image are read once, then each answer by itself.

One of the answers is recorded with its prompt. The others are replays of that run with their own words in the
place of its answer, so that tokens before it do not run again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlalign_utils.data.items import Item
from vlalign_utils.driver.driver import Driver
from vlalign_utils.driver.edits import Patch
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.answers import answer_mask, answer_tokens
from vlalign_utils.inference.batching import exact_batches
from vlalign_utils.inference.generation import images_of, like_rows


class Likelihoods(NamedTuple):
    """Of the choices of one item: log probability of each, and its number of tokens, the end included."""

    log_prob: Float[np.ndarray, " choices"]
    tokens: Float[np.ndarray, " choices"]


def likelihoods(vlm: VLM, items: Sequence[Item], batch_size: int = 64) -> list[Likelihoods]:
    """Likelihoods of the choices of each item, in their order.

    Args:
        vlm: a model with its processor.
        items: items with choices.
        batch_size: choices that are read at once, of one or more items.

    Raises ValueError for a prompt that the tokenizer writes in another way before each choice, and whatever
    a model raises that takes no text without an image; NotFiniteError for one that gives NaN or infinity.
    """
    found: dict[int, Likelihoods] = {}
    size = max(1, batch_size // max(len(item.choices) for item in items))
    for rows in exact_batches(vlm, like_rows(items, size)):
        found |= zip(rows, _of_batch(vlm, [items[row] for row in rows]), strict=True)
    return [found[row] for row in range(len(items))]


def agrees(vlm: VLM, item: Item, expected: Likelihoods) -> bool:
    """Whether this way gives what the model gives when it is shown the item with each choice.

    It does not where more than the residual stream of layer 0 says which token stands in a place.
    """
    try:
        (found,) = likelihoods(vlm, [item])
    except torch.OutOfMemoryError:
        raise
    # Whatever the model does not take of what it is given shows that it cannot be asked this way.
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError):
        return False
    tolerance = max(1e-4, 4 * torch.finfo(vlm.model.dtype).eps) * np.abs(expected.log_prob).max()
    return bool((np.abs(found.log_prob - expected.log_prob) <= tolerance).all())


def _of_batch(vlm: VLM, items: Sequence[Item]) -> list[Likelihoods]:
    """Likelihoods of the choices of items with images, or without."""
    prompts, images = [item.prompt for item in items], images_of(items)
    written = [answer_tokens(vlm, item.prompt, images is not None, item.choices) for item in items]
    longest = [
        item.choices[np.argmax([len(ids) for ids in own])] for item, own in zip(items, written, strict=True)
    ]
    inputs = vlm.prepare(prompts, images, longest)
    found = log_probs(vlm, inputs, answer_mask(vlm, inputs, prompts, images, longest), written)
    lengths = [np.array([len(ids) for ids in own], dtype=float) for own in written]
    return [Likelihoods(*own) for own in zip(found, lengths, strict=True)]


@torch.no_grad()
def log_probs(
    vlm: Driver,
    inputs: Mapping[str, Any],
    place: Bool[Tensor, "batch tokens"],
    written: Sequence[Sequence[list[int]]],
) -> list[Float[np.ndarray, " answers"]]:
    """Log probability of each of several answers to each prompt of a batch.

    Args:
        vlm: a model in which no token of an answer sees a later one.
        inputs: of the model's forward, each row with a longest one of its answers at its end.
        place: where that answer is.
        written: for each row its answers, each as the ids of its tokens.

    Raises ValueError for shapes that do not fit, and as `vlm.record` and `vlm.replays` do.
    """
    run = vlm.record(kv_cache=True, **inputs)
    # What a shorter answer leaves of the recorded one is behind it, where none of its tokens sees it.
    order = place.cumsum(1).masked_fill(~place, 0)  # 1 for the first token of the answer
    streams = iter(_entering(vlm, [ids for own in written for ids in own]))
    entering = [[next(streams)[: len(ids)] for ids in own] for own in written]
    sets, targets = [], []
    for number in range(max(map(len, written))):
        chosen = [min(number, len(own) - 1) for own in written]  # the last again where there are fewer
        answers = [own[i] for own, i in zip(written, chosen, strict=True)]
        lengths = torch.tensor([len(ids) for ids in answers], device=order.device)
        mask = place & (order <= lengths[:, None])
        sets.append([Patch(0, mask, torch.cat([own[i] for own, i in zip(entering, chosen, strict=True)]))])
        ids = torch.tensor([token for own in answers for token in own], device=order.device)
        targets.append(torch.full_like(order, -1).masked_scatter(mask, ids))
    keep = run.grid[1] - int(place.any(0).nonzero()[0])
    before = run.logits[:, -keep - 1 : -keep]  # from which the first token of every answer is read
    found = np.zeros((len(sets), len(written)))
    for number, logits in vlm.replays(run, sets, keep=keep):
        found[number] = _summed(torch.cat([before, logits], 1)[:, :-1], targets[number][:, -keep:])
    return [found[: len(own), row] for row, own in enumerate(written)]


def _entering(vlm: Driver, texts: Sequence[list[int]]) -> Float[Tensor, "texts tokens width"]:
    """What enters layer 0 at each token of texts without an image, padded on the right."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long, device=vlm.device)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    return vlm.prefix({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, stop=0)


def _summed(
    ahead: Float[Tensor, "batch tokens vocabulary"], targets: Int[Tensor, "batch tokens"]
) -> Float[np.ndarray, " batch"]:
    """Summed log probability of the targets that are not -1, read from the logits of the tokens before."""
    each = ahead.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    summed: Float[np.ndarray, " batch"] = each.masked_fill(targets < 0, 0).sum(1).double().cpu().numpy()
    return summed
