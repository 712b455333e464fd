"""The loss that a fine-tune lowers: cross-entropy of the answers' tokens of one batch."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.prefix_cache import Prefixes


class Answers(nn.Module):
    """Loss of one batch, by the ordinary forward or from its recorded prefix."""

    def __init__(self, vlm: VLM, prefixes: Prefixes | None) -> None:
        """Take the ordinary forward where `prefixes` is None."""
        super().__init__()
        self.model = vlm.model  # what DistributedDataParallel looks for
        self._vlm, self._prefixes = vlm, prefixes

    def forward(self, index: int, batch: Batch, share: float) -> Float[Tensor, ""]:
        """Mean cross-entropy of the answers' tokens, times `share`."""
        if self._prefixes is None:
            logits = self._vlm.model(**inputs_of(self._vlm, batch), use_cache=False).logits
        else:
            logits = self._vlm.replay(self._prefixes.run(index), start=self._prefixes.start).logits
        return share * answer_loss(logits, batch.answers)


def answer_loss(
    logits: Float[Tensor, "batch kept vocabulary"], answers: Int[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers' tokens; `logits` may be those of the last tokens alone.

    `answers` are token ids where an answer's token stands, and below 0 elsewhere.
    """
    target = answers[:, 1:][:, -(logits.shape[1] - 1) :]
    ahead = logits[:, :-1]
    return F.cross_entropy(ahead[target >= 0].float(), target[target >= 0])


def inputs_of(vlm: VLM, batch: Batch) -> dict[str, Any]:
    """Inputs of a batch as trained on: where it can, the head computes the answers' positions only."""
    if "logits_to_keep" not in vlm.anatomy.input_names():
        return batch.inputs
    first = int((batch.answers >= 0).any(0).int().argmax())
    return {**batch.inputs, "logits_to_keep": batch.answers.shape[1] - first + 1}


def kept_for_backward(vlm: VLM, loss: Callable[[], Tensor]) -> int:
    """Bytes of activations that autograd keeps in one step; weights are not counted."""
    weights = {p.untyped_storage().data_ptr() for p in vlm.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # Alive, or its place would be given to another; detached, or the graph would hold itself for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss()
    return sum(kept.values())
