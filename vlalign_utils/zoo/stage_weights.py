"""Weights of a stage: by name, as they are stored, and a digest of those that a stage starts from."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def rounded(parameters: Mapping[str, nn.Parameter]) -> Weights:
    """Copies in bfloat16, as they are stored and as the next stage has them."""
    return {name: p.detach().to(torch.bfloat16, copy=True) for name, p in parameters.items()}


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights in bfloat16: a checkpoint of training that began with others is refused.

    A stage may go on in another precision, on another processor.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        stored = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()
        found.update(stored.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
