"""Tell the tokens of a batch from its padding, and take single rows out of it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor


def attended_tokens(
    inputs: Mapping[str, Any], grid: tuple[int, int], image: Bool[Tensor, "batch tokens"] | None
) -> Bool[Tensor, "batch tokens"]:
    """Positions of the decoder that are no padding; image features that a model inserts itself are none."""
    given = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
    device = next(v.device for v in inputs.values() if isinstance(v, Tensor))
    everything = torch.ones(grid, dtype=torch.bool, device=device)
    if mask is None:
        return everything
    if mask.shape == grid:
        return mask.bool()
    if given is not None and image is not None and ((~image).sum(-1) == mask.shape[-1]).all():
        return everything.masked_scatter(~image, mask.bool())
    return everything


def single_row(inputs: Mapping[str, Any], row: int) -> dict[str, Any] | None:
    """One row of a left-padded batch by itself, without its padding; None where rows cannot be told apart.

    Rows are taken to have equally many pixels: each tensor is cut into as many equal parts as there are rows.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    rows, tokens = mask.shape
    if any(_SIZES.search(name) and _differs(value, rows) for name, value in inputs.items()):
        return None  # images of several sizes: equal parts would mix their pixels
    padding = int((mask[row] != 0).int().argmax())
    alone: dict[str, Any] = {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            alone[name] = value
            continue
        axis = 0 if value.shape[0] % rows == 0 else -1  # images packed into one strip
        if value.shape[axis] % rows:
            return None
        part = value.chunk(rows, dim=axis)[row]
        # What counts tokens is as long as the mask; images may be so by chance.
        counted = part.ndim > 1 and part.shape[1] == tokens and not name.startswith(_ELSEWHERE)
        alone[name] = part[:, padding:] if counted else part
    return alone


def _differs(value: Any, rows: int) -> bool:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim == 0 or len(value) % rows:
        return False
    first, *others = value.chunk(rows)
    return not all(torch.equal(first, other) for other in others)


_SIZES = re.compile(r"grid|sizes|spatial_shapes")  # inputs that count the pixels or patches of each image
_ELSEWHERE = ("pixel", "decoder", "qformer")  # the axes of these count something else
