"""Find the token positions that hold image features by changing the pixels: needs no placeholder ids."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vlalign_utils.driver.anatomy import Anatomy
from vlalign_utils.driver.edits import tokens_first
from vlalign_utils.driver.recording import Run, entering_layer_0, token_grid


def pixel_mask(
    anatomy: Anatomy, inputs: Mapping[str, Any], run: Run | None = None
) -> Bool[Tensor, "batch tokens"]:
    """Positions where what enters layer 0 depends on the pixels.

    What cross-attention adds before layer 0 is left out: it reaches every position and belongs to none.
    """
    same = (
        run is not None
        and run.inputs.keys() == inputs.keys()
        and all(torch.equal(v, run.inputs[k]) for k, v in inputs.items() if isinstance(v, Tensor))
    )
    recorded = same and None not in anatomy.cross_attentions().values()
    before = run.resid[0] if run is not None and recorded else entering_layer_0(anatomy, inputs)
    after = entering_layer_0(anatomy, {**inputs, **other_pixels(inputs)})
    return tokens_first(before != after, token_grid(before, inputs)).flatten(start_dim=2).any(dim=-1)


def pixels(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs that hold image content: all real numbers that are neither masks nor token embeddings."""
    return {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not name.endswith(("mask", "embeds"))
    }


def other_pixels(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Replace the images of inputs by others, always the same: noise is added to every pixel.

    Columns of whole numbers may be row and column numbers that index a table: they are only made smaller.
    Zeros stay: a tile of nothing else is padding, which some models count.
    """
    noise = torch.Generator().manual_seed(0)  # its own generator: the caller's random state stays as it is
    changed = {}
    for name, value in pixels(inputs).items():
        added = value + torch.randn(value.shape, generator=noise).to(value)
        scaled = value * (0.5 + 0.5 * torch.rand(value.shape, generator=noise)).to(value)
        whole = (value == value.round()).flatten(end_dim=-2).all(0)
        changed[name] = torch.where(whole | (value == 0), scaled, added)
    return changed
