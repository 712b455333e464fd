"""Gradient energy: how strongly the loss pulls at the linear modules of every layer, before any training.

Source: DomLoRA (arXiv 2605.06183) places adapters where it is highest; known from its abstract alone, so that
the formula is this project's reading.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.answer_loss import Answers
from vlalign_utils.tuning.lora import linears_of
from vlalign_utils.tuning.trainable import trainable


def gradient_energy(vlm: VLM, batches: Sequence[Batch]) -> list[float]:
    """Squared norm of the gradient of every decoder layer's linear weights, mean over batches.

    E_k = mean over batches b of the sum over linear modules W of layer k of |dL_b / dW|^2 (Frobenius norm), L
    the mean answer loss. No weight is changed.

    Args:
        vlm: a model with its processor.
        batches: questions with answers, as `scoring.batches` gives them.

    Raises ValueError without batches, and for a model that is not loaded in float32.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> from vlalign_utils.inference.scoring import batches
        >>> vlm = load_vlm("zoo/llava", "aligned")
        >>> asked = list(batches(vlm, load_suite("attributes", 4, split="train"), batch_size=4))
        >>> len(gradient_energy(vlm, asked)) == vlm.n_layers
        True
    """
    if not batches:
        raise ValueError("there are no batches to take gradients of")
    by_layer = [[m.weight for m in linears_of(layer).values()] for layer in vlm.layers]
    others = {str(p.dtype).removeprefix("torch.") for p in vlm.model.parameters()} - {"float32"}
    if others:
        raise ValueError(f"weights must be in float32, not {min(others)}: load with dtype='float32'")
    weights = cast("list[nn.Parameter]", [weight for own in by_layer for weight in own])
    energy = torch.zeros(len(by_layer), dtype=torch.float64)
    with trainable(vlm.model, weights):
        task = Answers(vlm, None)
        for batch in batches:
            loss = task(0, batch, 1.0)
            grads = iter(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
            energy += torch.tensor([sum(_square(next(grads)) for _ in own) for own in by_layer])
    return [float(e) for e in energy / len(batches)]


def highest(energy: Sequence[float], width: int) -> tuple[int, ...]:
    """Numbers of the `width` layers of most energy, ascending; of two alike the lower.

    >>> highest([0.1, 3.0, 0.2, 5.0], 2)
    (1, 3)
    """
    order = sorted(range(len(energy)), key=lambda k: (-energy[k], k))
    return tuple(sorted(order[:width]))


def _square(gradient: Tensor) -> float:
    return gradient.double().square().sum().item()
