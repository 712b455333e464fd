"""Which positions of the decoder are tokens, and which only fill up a batch."""

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
