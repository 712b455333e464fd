"""What the rest of a forward reads of all that ran before and below a decoder layer.

Found out on one batch, by putting NaN in a tensor's place: what nobody reads spoils nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from vlalign_utils.models import VLM
from vlalign_utils.trace import Run
from vlalign_utils.walk import Answer

Slot = tuple[str, int, int]  # a module before layer 0, or "" for a layer; its call, or the layer; the leaf
SMALL = 1 / 8  # of the residual stream's bytes: keeping less costs less than asking who reads it

Logits = Float[Tensor, "batch kept vocabulary"]


def specs(run: Run) -> list[tuple[tuple[str, int], pytree.TreeSpec]]:
    """Everything that ran below, in one order, and the structure of what it gave."""
    return [(at, spec) for at, _, spec in _calls(run)]


def leaves(run: Run) -> list[tuple[Slot, Any]]:
    """All that it gave, leaf by leaf, in the same order."""
    return [((*at, j), leaf) for at, own, _ in _calls(run) for j, leaf in enumerate(own)]


@torch.no_grad()
def answered_twice(vlm: VLM, run: Run, start: int) -> Logits:
    """Logits of the run's inputs. Raises ValueError when a replay from `start` on is not exact."""
    plain: Tensor = vlm.model(**run.inputs, use_cache=False).logits
    if plain.isnan().any():
        raise ValueError("the model's logits are not numbers on the first batch: nothing can be recorded")
    if not torch.equal(plain, vlm.replay(run, start=start).logits):
        raise ValueError(
            f"{type(vlm.model).__name__} does not give the same answer twice from layer {start} on (dropout? "
            "layers that depend on more than their input?): train without recorded prefixes"
        )
    return plain


@torch.no_grad()
def needed(vlm: VLM, run: Run, start: int, logits: Logits) -> set[Slot]:
    """Slots to keep, so that the forward from `start` on gives these logits.

    What enters layer `start`, small tensors and those that cannot hold NaN are kept unasked, so that for most
    families a single replay is enough.
    """
    stream = run.resid[start]
    tensors = {slot: leaf for slot, leaf in leaves(run) if isinstance(leaf, Tensor)}
    doubtful = [
        slot
        for slot, leaf in tensors.items()
        if leaf.is_floating_point()
        and leaf.nbytes > SMALL * stream.nbytes
        and not (slot[:2] == ("", start - 1) and leaf.shape == stream.shape)
    ]
    kept = set(tensors) - set(doubtful)

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
        for name in sorted(run.answers)
        for number, (own, spec) in enumerate(run.answers[name])
    ]
    for k in sorted(run.outputs):
        own, spec = pytree.tree_flatten(run.outputs[k])
        found.append((("", k), own, spec))
    return found


def _with(run: Run, put: Mapping[Slot, Tensor]) -> Run:
    """A run with other tensors in some of its slots."""
    answers: dict[str, list[Answer]] = {}
    outputs: dict[int, Any] = {}
    for at, own, spec in _calls(run):
        changed = [put.get((*at, j), leaf) for j, leaf in enumerate(own)]
        if at[0]:
            answers.setdefault(at[0], []).append((changed, spec))
        else:
            outputs[at[1]] = pytree.tree_unflatten(changed, spec)
    return Run(**{**vars(run), "answers": answers, "outputs": outputs})
