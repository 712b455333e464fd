"""What sweeps are compared with: plain forward hooks on the transformers model, one full forward an edit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tiny_models import IMAGE
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.data.items import Item


def layers(vlm: VLM) -> Any:
    return vlm.model.model.language_model.layers


def inputs_of(vlm: VLM, items: Sequence[Item]) -> dict[str, Any]:
    pictures = [i.image for i in items if i.image is not None] or None
    return vlm.prepare([i.prompt for i in items], pictures, [i.answer for i in items])


def places(items: Sequence[Item], ids: Tensor) -> dict[str, Tensor]:
    """Masks from the ids alone: words are tokens, the answer and its end stand last."""
    image, last = ids == IMAGE, torch.zeros_like(ids, dtype=torch.bool)
    question = torch.zeros_like(last)
    for row, item in enumerate(items):
        answer = len(item.answer.split()) + 1
        last[row, -answer - 1 :] = True
        if image[row].any():
            question[row, int(image[row].nonzero()[-1]) + 1 : -answer - 1] = True
    return {"image": image, "question": question, "last": last}


@torch.no_grad()
def states(vlm: VLM, items: Sequence[Item]) -> list[Tensor]:
    """What enters each layer, and what leaves the last."""
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for layer in layers(vlm)]
    handles.append(layers(vlm)[-1].register_forward_hook(lambda m, args, out: seen.append(out)))
    vlm.model(**inputs_of(vlm, items), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def probs(
    vlm: VLM, items: Sequence[Item], slot: int = 0, mask: Tensor | None = None, value: Tensor | None = None
) -> np.ndarray:
    """Probability of each item's answer, with what reaches `slot` overwritten at the mask."""

    def write(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[mask] = value
        return hidden

    handles = []
    if mask is not None and slot < len(layers(vlm)):
        at = layers(vlm)[slot]
        handles.append(at.register_forward_pre_hook(lambda m, args: (write(args[0]), *args[1:])))
    elif mask is not None:
        handles.append(layers(vlm)[-1].register_forward_hook(lambda m, args, out: write(out)))
    inputs = inputs_of(vlm, items)
    logits = vlm.model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    found = []
    for row, item in enumerate(items):
        ids = inputs["input_ids"][row]
        chances = logits[row].softmax(-1)
        n = len(item.answer.split()) + 1
        found.append(np.prod([chances[-k - 1, ids[-k]].item() for k in range(1, n + 1)]))
    return np.array(found)
