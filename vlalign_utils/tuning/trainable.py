"""Which of a model's parameters require gradients, in which precision, and which layers are recomputed.

Every change holds while a block runs, and is undone at its end, also after an error.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from vlalign_utils.driver.residual_stream import replace_forward


@contextmanager
def trainable(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let exactly these parameters of a model require gradients while the block runs.

    Autograd keeps nothing for what lies below the lowest of them; with none given, for nothing. At the end
    every parameter that the model had at the beginning has the `requires_grad` that it had then. Raises
    ValueError, with nothing changed, for a parameter that is none of the model's.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = list(parameters)
    known = {id(parameter) for parameter, _ in before}
    if any(id(parameter) not in known for parameter in chosen):
        raise ValueError(f"a parameter to be trained is none of {type(model).__name__}'s: pass its own ones")
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


@contextmanager
def in_float32(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Hold copies of these parameters in float32, without gradients, while the block runs.

    At the end their original values and gradients are restored. Raises ValueError, with nothing changed, for
    weights that are offloaded or quantised.
    """
    for parameter in parameters:
        if parameter.is_meta or not parameter.is_floating_point():
            raise ValueError(
                "weights that are trained are offloaded or quantised: load the model without, or train LoRA"
            )
    before = [(parameter.data, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
            parameter.data = parameter.data.to(torch.float32, copy=True)
        yield
    finally:
        for parameter, (value, gradient) in zip(parameters, before, strict=True):
            parameter.grad = None
            parameter.data = value
            parameter.grad = gradient
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1)  # the same bits, counted as a change: what was recorded in between is stale


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Compute layers again in the backward pass, instead of keeping their activations.

    The gradient checkpointing of transformers works in train mode only, where some layers' dropout works too.
    """
    with ExitStack() as undo:
        for layer in layers:
            replace_forward(layer, partial(recompute, layer.forward, use_reentrant=False), undo)
        yield
