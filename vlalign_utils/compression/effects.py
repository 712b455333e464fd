"""Answers of compressed models about images and about captions, and their prediction of plain text."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlalign_utils.compression.bypass import Bypass, bypassed
from vlalign_utils.compression.calibration import Unit
from vlalign_utils.compression.rounding import rounded_layers
from vlalign_utils.compression.shorter import without_layers
from vlalign_utils.data.items import Item
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import above_chance
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import answer_scores, evaluation_batches, tokens_read

SIDES = ("images", "captions")


class Variant(NamedTuple):
    """A compressed model: the lowest layer that differs, and what puts the change in place."""

    start: int
    applied: Callable[[VLM], AbstractContextManager[Any]]


def whole(vlm: VLM) -> Variant:
    """The model as it is."""
    return Variant(vlm.n_layers - 1, nullcontext)


def with_bypasses(bypasses: Mapping[Unit, Bypass]) -> Variant:
    """The model with bypasses in place of submodules."""
    return Variant(min(layer for layer, _ in bypasses), lambda vlm: bypassed(vlm, bypasses))


def with_gap(first: int, length: int, matrix: Tensor | None = None) -> Variant:
    """The model without some layers; with a matrix, the MLP before stands for them."""
    start = first if matrix is None else first - 1
    return Variant(start, lambda vlm: without_layers(vlm, first, length, matrix))


def with_rounding(layers: Sequence[int], bits: int) -> Variant:
    """The model with the weights of some layers rounded."""
    return Variant(min(layers), lambda vlm: rounded_layers(vlm, layers, bits))


@torch.no_grad()
def scores(
    vlm: VLM,
    items: Sequence[Item],
    variants: Mapping[str, Variant],
    batch_size: int = 64,
    label: str = "batches",
) -> dict[str, dict[str, Float[np.ndarray, " items"]]]:
    """Normalised score of every item, by side (images, captions) and variant: 0 is guessing, 1 is right.

    What lies below a variant's first layer runs once for all of them.

    Args:
        vlm: a model with its processor.
        items: questions about images, whose captions are asked about, too.
        variants: compressed models by name.
        batch_size: items of one forward.
        label: of the progress bar.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> vlm, items = load_vlm("zoo/llava"), load_suite("digits", 4)
        >>> found = scores(vlm, items, {"whole": whole(vlm), "gap": with_gap(3, 2)})
        >>> sorted(found), sorted(found["images"])
        (['captions', 'images'], ['gap', 'whole'])
    """
    sides = {SIDES[0]: list(items), SIDES[1]: [item.caption_version() for item in items]}
    chance = np.array([item.chance for item in items])
    found: dict[str, dict[str, np.ndarray]] = {}
    for side, asked in sides.items():
        correct = {name: np.zeros(len(items)) for name in variants}
        for batch in progress(list(evaluation_batches(vlm, asked, batch_size)), f"{label}, {side}"):
            inputs: dict[str, Any] = {**batch.inputs}
            run, last = vlm.record(**inputs), slice(-tokens_read(batch.answers), None)
            for name, variant in variants.items():
                with variant.applied(vlm):
                    logits = vlm.replay(run, start=variant.start).logits[:, last]
                correct[name][batch.rows] = answer_scores(logits, batch.answers[:, last]).correct
        found[side] = {name: above_chance(values, chance) for name, values in correct.items()}
    return found


@torch.no_grad()
def text_losses(
    vlm: VLM, texts: Sequence[str], variants: Mapping[str, Variant], batch_size: int = 64
) -> dict[str, Float[np.ndarray, " texts"]]:
    """Mean negative log probability of a token of each text, in nats, by variant: plain text, without a chat.

    The first token is given. The exponential of the mean over texts is a perplexity in which every text
    counts the same, whatever its length. Raises ValueError for a text of fewer than two
    tokens.
    """
    tokenizer = vlm.tokenizer
    found = {name: np.zeros(len(texts)) for name in variants}
    for first in range(0, len(texts), batch_size):
        rows = list(texts[first : first + batch_size])
        inputs = tokenizer(rows, return_tensors="pt", padding=True, padding_side="left").to(vlm.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        if int(mask.sum(1).min()) < 2:
            raise ValueError("a text has fewer than two tokens, so none is predicted from another")
        run = vlm.record(input_ids=ids, attention_mask=inputs["attention_mask"])
        predicted = mask[:, 1:] & mask[:, :-1]
        for name, variant in variants.items():
            with variant.applied(vlm):
                logits = vlm.replay(run, start=variant.start).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.float().transpose(1, 2), ids[:, 1:], reduction="none"
            )
            means = (losses * predicted).sum(1) / predicted.sum(1)
            found[name][first : first + len(rows)] = means.cpu().double().numpy()
    return found
