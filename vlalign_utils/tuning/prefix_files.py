"""Serialise a recorded prefix, what ran below a decoder layer, as tensors and JSON; and read it back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.residual_stream import ModuleOutput
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.tuning.needed_tensors import Slot, leaves

Specs = Sequence[tuple[tuple[str, int], pytree.TreeSpec]]  # of `needed_tensors.specs`


def serialise(run: Run, start: int, needed: set[Slot]) -> tuple[dict[str, Tensor], list[Any]]:
    """Serialise a run up to layer `start`: the needed tensors, and in JSON values the rest.

    The values are the stream's shape, and for every leaf which tensor it is or what it was.

    Raises ValueError for what is no tensor and JSON cannot hold.
    """
    kept: dict[str, Tensor] = {}
    plan: list[Any] = [list(run.resid[start].shape)]
    for number, (slot, leaf) in enumerate(leaves(run)):
        if not isinstance(leaf, Tensor):
            if not isinstance(leaf, str | int | float | bool | None):
                raise ValueError(
                    f"a {type(leaf).__name__} runs before layer {start}, which no file can hold: "
                    "train without recorded prefixes"
                )
            plan.append(["value", leaf])
        elif slot in needed:
            # A copy: no file takes two tensors that share memory.
            kept[str(number)] = leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
            plan.append(["kept", str(number)])
        else:
            plan.append(["empty", list(leaf.shape), str(leaf.dtype).removeprefix("torch.")])
    return kept, plan


def deserialise(
    vlm: VLM,
    inputs: Mapping[str, Any],
    start: int,
    specs: Specs,
    kept: Mapping[str, Tensor],
    plan: list[Any],
    rest: float = 0.0,
) -> Run:
    """Rebuild a run of these inputs to replay from `start`; what was not kept is `rest` everywhere.

    NaN shows in a forward who reads it, but a backward pass may take up 0 times NaN where nobody does.
    """
    module_outputs: dict[str, list[ModuleOutput]] = {}
    outputs: dict[int, Any] = {}
    shape, *entries = plan
    left = iter([_leaf(entry, kept, vlm.device, rest) for entry in entries])
    for (name, number), spec in specs:
        own = [next(left) for _ in range(spec.num_leaves)]
        if name:
            module_outputs.setdefault(name, []).append((own, spec))
        else:
            outputs[number] = pytree.tree_unflatten(own, spec)
    # Only its shape is looked at: the stream comes out of the last layer that did not run.
    stream = torch.empty((), dtype=vlm.model.dtype, device=vlm.device).expand(shape)
    return Run(
        inputs=vlm._on_device(inputs),
        resid=[stream] * (start + 1),
        final=None,
        outputs=outputs,
        states={},
        module_outputs=module_outputs,
        calls={},
        root=vlm.model,
        versions=[stream._version] * (start + 1),
    )


def _leaf(entry: list[Any], kept: Mapping[str, Tensor], device: torch.device, rest: float) -> Any:
    kind, *about = entry
    if kind == "kept":
        return kept[about[0]].to(device)
    if kind == "value":
        return about[0]
    return torch.full(about[0], rest, dtype=getattr(torch, about[1]), device=device)
