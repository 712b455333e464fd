"""Needed tensors: those that the rest of a forward reads, of all that ran before and below a decoder layer.

Found out on one batch, by replacing a tensor with NaN: one that nothing reads changes no logit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.residual_stream import ModuleOutput
from vlalign_utils.driver.vlm import VLM

Slot = tuple[str, int, int]  # a module before layer 0, or "" for a layer; its call, or the layer; the leaf
SMALL = 1 / 8  # of the residual stream's bytes: keeping less costs less than asking who reads it

Logits = Float[Tensor, "batch kept vocabulary"]


def specs(run: Run) -> list[tuple[tuple[str, int], pytree.TreeSpec]]:
    """List all calls below, in one order, with the structure of their outputs."""
    return [(at, spec) for at, _, spec in _calls(run)]


def leaves(run: Run) -> list[tuple[Slot, Any]]:
    """List the leaves of their outputs, in the same order."""
    return [((*at, j), leaf) for at, own, _ in _calls(run) for j, leaf in enumerate(own)]


def unasked(run: Run, start: int) -> set[Slot]:
    """Slots that are kept, read or not: what enters layer `start`, small ones, and no place for NaN."""
    stream = run.resid[start]
    return {
        slot
        for slot, leaf in leaves(run)
        if isinstance(leaf, Tensor)
        and (
            not leaf.is_floating_point()
            or leaf.nbytes <= SMALL * stream.nbytes
            or (slot[:2] == ("", start - 1) and leaf.shape == stream.shape)
        )
    }


@torch.no_grad()
def needed(vlm: VLM, run: Run, start: int, logits: Logits) -> set[Slot]:
    """Slots to keep, so that the forward from `start` on gives these logits: `unasked` and what is read."""
    tensors = {slot: leaf for slot, leaf in leaves(run) if isinstance(leaf, Tensor)}
    kept = unasked(run, start)
    doubtful = [slot for slot in tensors if slot not in kept]

    def unread(slots: Sequence[Slot]) -> bool:
        spoiled = _with(run, {slot: torch.full_like(tensors[slot], torch.nan) for slot in slots})
        try:
            return torch.equal(logits, vlm.replay(spoiled, start=start).logits)
        except (ValueError, RuntimeError, IndexError):
            return False

    todo = [doubtful] if doubtful else []
    while todo:  # halve what is read, until it is single
        slots = todo.pop()
        if unread(slots):
            continue
        if len(slots) == 1:
            kept.update(slots)
        else:
            todo += [slots[: len(slots) // 2], slots[len(slots) // 2 :]]
    return kept


def _calls(run: Run) -> list[tuple[tuple[str, int], list[Any], pytree.TreeSpec]]:
    """Module and call, or layer; its leaves and their structure."""
    found = [
        ((name, number), own, spec)
        for name in sorted(run.module_outputs)
        for number, (own, spec) in enumerate(run.module_outputs[name])
    ]
    for k in sorted(run.outputs):
        own, spec = pytree.tree_flatten(run.outputs[k])
        found.append((("", k), own, spec))
    return found


def _with(run: Run, put: Mapping[Slot, Tensor]) -> Run:
    """A run with other tensors in some of its slots."""
    module_outputs: dict[str, list[ModuleOutput]] = {}
    outputs: dict[int, Any] = {}
    for at, own, spec in _calls(run):
        changed = [put.get((*at, j), leaf) for j, leaf in enumerate(own)]
        if at[0]:
            module_outputs.setdefault(at[0], []).append((changed, spec))
        else:
            outputs[at[1]] = pytree.tree_unflatten(changed, spec)
    return Run(**{**vars(run), "module_outputs": module_outputs, "outputs": outputs})
