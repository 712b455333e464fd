"""Texts that a model itself generates about items."""

from collections.abc import Sequence

import torch
from PIL import Image

from vlalign_utils.data.items import Item
from vlalign_utils.driver.finite import check_logits
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.batching import exact_batches, length_sorted


def generated(vlm: VLM, items: Sequence[Item], max_new_tokens: int, batch_size: int = 64) -> list[str]:
    """Generate the model's own (greedy) text to each item, in their order.

    Args:
        vlm: a model with its processor.
        items: of one or more suites.
        max_new_tokens: longest text.
        batch_size: items in one batch; one where padding would move an item's tokens.

    Raises ValueError, naming the first part of the model at fault, when it gives NaN or infinity.
    """
    said = [""] * len(items)
    for rows in exact_batches(vlm, like_rows(items, batch_size)):
        chosen = [items[row] for row in rows]
        inputs = vlm.prepare([item.prompt for item in chosen], images_of(chosen))
        with torch.no_grad():
            out = vlm.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
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


def images_of(items: Sequence[Item]) -> list[Image.Image] | None:
    """Images of items that all have one, or None where none has."""
    return [item.image for item in items if item.image is not None] or None


def like_rows(items: Sequence[Item], batch_size: int) -> list[list[int]]:
    """Rows of items with images, then without, in batches of like length."""
    blind = [item.image is None for item in items]
    lengths = [(blind[i], len(item.prompt) + len(item.answer)) for i, item in enumerate(items)]
    # The shortest first, as in the studies on record: their batches, and so their numbers, are in this order.
    return length_sorted(lengths, batch_size, blind, longest_first=False)
