"""Weights of some layers rounded to few bits, for as long as a body runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from vlalign_utils.compression.closed_form import quantised
from vlalign_utils.driver.vlm import VLM

GROUP = 32  # inputs that share a scale, as in the usual formats of four bits


@contextmanager
def rounded_layers(vlm: VLM, layers: Sequence[int], bits: int, group: int = GROUP) -> Iterator[VLM]:
    """Run the body with the linear modules of these layers rounded to `bits`; then the weights are as before.

    Raises IndexError for a layer that is not there, and ValueError as `quantised` does and for a layer with
    products outside linear modules (experts held as one tensor) or with weights that are quantised already.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> weight = vlm.layers[0].mlp.up_proj.weight
        >>> with rounded_layers(vlm, [0], bits=4):
        ...     len(weight[0, :32].unique()) <= 15
        True
    """
    modules = [m for k in layers for m in vlm.layers[k].modules() if isinstance(m, nn.Linear)]
    held = {id(m.weight) for m in modules}
    for k in layers:
        for name, p in vlm.layers[k].named_parameters():
            if not p.is_floating_point() or (p.ndim > 1 and id(p) not in held):
                raise ValueError(
                    f"layer {k}: {name} is no weight of a linear module in floating point: rounding linear "
                    "modules alone would leave it as it is"
                )
    before = [m.weight.detach().clone() for m in modules]
    try:
        with torch.no_grad():
            for module in modules:
                module.weight.copy_(quantised(module.weight.float(), bits, group))
        yield vlm
    finally:
        with torch.no_grad():
            for module, weight in zip(modules, before, strict=True):
                module.weight.copy_(weight)
