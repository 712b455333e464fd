"""Residual streams of many items, pooled over groups of tokens: one vector per item and layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vlalign_utils.data import Pair
from vlalign_utils.data.language import Language, describe
from vlalign_utils.edits import tokens_first
from vlalign_utils.models import VLM
from vlalign_utils.progress import progress
from vlalign_utils.trace import Run

Mask = Bool[Tensor, "batch tokens"]


def last_true(mask: Mask) -> Mask:
    """The last selected position of each row, and nothing in a row without one."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


# Each group gets the attended positions and the image positions of a batch. A mean is taken over what it
# selects: "image" and "text" are means over tokens, the others single tokens.
GROUPS: dict[str, Callable[[Mask, Mask], Mask]] = {
    "image": lambda attended, image: image,
    "last_image": lambda attended, image: last_true(image),
    "text": lambda attended, image: attended & ~image,
    "last": lambda attended, image: last_true(attended),
}


def token_masks(vlm: VLM, run: Run, groups: Sequence[str]) -> dict[str, Mask]:
    """Positions of each group in a recorded batch; padding belongs to none.

    Raises ValueError for an unknown group, and for one that is empty in some item of the batch.
    """
    attended = run.inputs["attention_mask"].bool()
    image = vlm.image_mask(run.inputs, run)
    image = torch.zeros_like(attended) if image is None else image & attended
    masks = {}
    for group in groups:
        if group not in GROUPS:
            raise ValueError(f"unknown token group {group!r}; expected one of {', '.join(GROUPS)}")
        masks[group] = GROUPS[group](attended, image)
        empty = (~masks[group].any(dim=-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"group {group!r} has no token in item {empty[0]} of its batch: the item has no image, "
                "or images take no positions in this model (cross-attention)"
            )
    return masks


def pool(run: Run, masks: Mapping[str, Mask]) -> dict[str, Float[Tensor, "layers batch d"]]:
    """Mean over the masked tokens of what enters each layer and of what leaves the last one."""
    weights = {group: mask / mask.sum(-1, keepdim=True) for group, mask in masks.items()}
    pooled: dict[str, list[Tensor]] = {group: [] for group in masks}
    for resid in run.resid:
        hidden = tokens_first(resid, run.grid).flatten(start_dim=2).float()  # [B, T, D]
        for group, weight in weights.items():
            pooled[group].append(torch.einsum("bt,btd->bd", weight, hidden))
    return {group: torch.stack(layers) for group, layers in pooled.items()}


@torch.no_grad()
def collect(
    vlm: VLM,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None,
    groups: Sequence[str],
    batch_size: int = 64,
    label: str = "states",
) -> dict[str, Float[Tensor, "layers items d"]]:
    """Pooled states of every item, on the CPU in float32; there is one layer more than the model has.

    Layer k is what enters decoder layer k; the last is what leaves the last layer, before the final norm.
    Memory is one batch of residual streams plus the result.
    """
    pieces = []
    for start in progress(range(0, len(prompts), batch_size), label):
        rows = slice(start, start + batch_size)
        inputs: dict[str, Any] = vlm.prepare(prompts[rows], None if images is None else images[rows])
        run = vlm.record(**inputs)
        pieces.append(pool(run, token_masks(vlm, run, groups)))
    return {group: torch.cat([piece[group].cpu() for piece in pieces], dim=1) for group in groups}


def pair_states(
    vlm: VLM, pairs: Sequence[Pair], language: Language = "en", batch_size: int = 64, label: str = "pairs"
) -> dict[str, Float[Tensor, "layers items d"]]:
    """States of each pair's picture ("image", "last_image") and of its caption ("text", "last").

    The picture comes with the request to describe it, the caption alone: neither sees the other.
    """
    ask = [describe(language)] * len(pairs)
    pictures = [pair.image for pair in pairs]
    captions = [pair.caption[language] for pair in pairs]
    seen = collect(vlm, ask, pictures, ("image", "last_image"), batch_size, f"{label}, pictures")
    return seen | collect(vlm, captions, None, ("text", "last"), batch_size, f"{label}, captions")
