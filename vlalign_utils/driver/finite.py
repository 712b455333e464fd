"""Checks for NaN and infinity: the part of a model that gives them first, and why."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vlalign_utils.driver import recording
from vlalign_utils.driver.anatomy import Anatomy
from vlalign_utils.driver.edits import tokens_first
from vlalign_utils.driver.padding import attended_tokens
from vlalign_utils.driver.recording import Run

__all__ = ["NotFiniteError", "check_logits", "check_run", "fault"]


class NotFiniteError(ValueError):
    """A model gives NaN or infinity where numbers are read."""


def check_run(anatomy: Anatomy, run: Run) -> None:
    """Raise NotFiniteError, naming part and cause, unless what the run ends in are numbers at every token.

    One pass over the logits (of a run that stopped: over its last residual stream).
    """
    numbers = run.final if run.final is not None else tokens_first(run.resid[-1], run.grid).flatten(2)
    if _has_numbers(run.inputs, numbers):
        return
    raise NotFiniteError(fault(anatomy, run.inputs) or _unknown(anatomy))


def check_logits(anatomy: Anatomy, inputs: Mapping[str, Any], logits: Tensor) -> None:
    """Raise NotFiniteError, naming part and cause, unless logits [batch, tokens, vocabulary] are numbers."""
    if not _has_numbers(inputs, logits):
        raise NotFiniteError(fault(anatomy, inputs) or _unknown(anatomy))


def _has_numbers(inputs: Mapping[str, Any], numbers: Tensor) -> bool:
    # The maximum over the vocabulary hides -inf of single entries, which some heads use for "never".
    wrong = ~numbers.amax(dim=-1).isfinite()
    if not wrong.any():
        return True
    grid = (wrong.shape[0], wrong.shape[1])
    return not (wrong & attended_tokens(inputs, grid, None).to(wrong.device)).any()


def fault(anatomy: Anatomy, inputs: Mapping[str, Any]) -> str | None:
    """Run the model again and say which part first gives NaN or infinity, and why; None if none does.

    Padding does not count: what attention gives there is read by no token.
    """
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return f"the input {name} holds NaN or infinity: look at what made it"
    bad: list[str] = []
    with ExitStack() as hooks:
        for name, module in anatomy.root.named_modules():
            hooks.callback(module.register_forward_hook(partial(_note, bad, name)).remove)
        run = recording.record(anatomy, inputs)
    names = {id(module): name for name, module in anatomy.root.named_modules()}
    layers = [names[id(layer)] for layer in anatomy.layers]
    before = [name for name in bad if any(_within(name, ran) for ran in run.module_outputs)]
    if before:
        return _said(anatomy, "before the first layer", before[0])
    seen = attended_tokens(run.inputs, run.grid, None)
    for slot, stream in enumerate(run.resid):
        if tokens_first(stream, run.grid)[seen].isfinite().all():
            continue
        if slot == 0:
            outside = [name for name in bad if not any(_within(name, layer) for layer in layers)]
            return _said(anatomy, "before the first layer", next(iter(outside), ""))
        inside = [name for name in bad if _within(name, layers[slot - 1])]
        return _said(anatomy, f"in layer {slot - 1}", next(iter(inside), layers[slot - 1]))
    outside = [name for name in bad if not any(_within(name, layer) for layer in layers)]
    return _said(anatomy, "after the last layer", outside[0]) if outside else None


def _note(bad: list[str], name: str, module: nn.Module, args: Any, output: Any) -> None:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if any(leaf.is_floating_point() and not leaf.isfinite().all() for leaf in leaves):
        bad.append(name)


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _said(anatomy: Anatomy, where: str, name: str) -> str:
    part = anatomy.root.get_submodule(name)
    what = (
        f"{type(anatomy.root).__name__} gives NaN or infinity {where}, first in {name or 'the model itself'}"
    )
    broken = next((n for n, p in part.named_parameters() if not p.isfinite().all()), None)
    if broken is not None:
        return f"{what}: its weight {broken} holds NaN or infinity, so load or train the model again"
    root: Any = anatomy.root
    dtype = next((p.dtype for p in part.parameters() if p.is_floating_point()), root.dtype)
    if dtype == torch.float16:
        return (
            f"{what}: its numbers exceed what float16 holds ({torch.finfo(dtype).max:.0f}), so load it with "
            "dtype=torch.bfloat16 or torch.float32"
        )
    return (
        f"{what}: weights and inputs are numbers, so load it with dtype=torch.float32, or look at that module"
    )


def _unknown(anatomy: Anatomy) -> str:
    return (
        f"{type(anatomy.root).__name__} gave NaN or infinity, but did not when it ran again (dropout? "
        "automatic precision?): put it in eval mode, or load it with dtype=torch.float32"
    )
