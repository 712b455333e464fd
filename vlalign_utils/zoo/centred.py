"""A connector whose input has mean zero while it is trained.

What all images share reaches every weight with the same sign, so that AdamW's first steps, of one size for
every weight, add up along it: images become the same word before they become different ones. Less the mean,
the layer computes what it did, since its bias takes the mean up (LeCun et al. 1998, *Efficient BackProp*,
4.3).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlalign_utils.zoo.connector import given_to


@torch.no_grad()
def mean_input(layer: nn.Module, run: Callable[[], Any]) -> Float[Tensor, " features"]:
    """Mean over all rows of what `layer` is given while `run` is called, in float32.

    Raises ValueError when the layer is not called.
    """
    seen = [given.flatten(0, -2).float() for given in given_to(layer, run)]
    if not seen:
        raise ValueError(f"the {type(layer).__name__} whose input is to be centred was not called")
    return torch.cat(seen).mean(0)


@contextmanager
def centred(layer: nn.Linear, mean: Float[Tensor, " features"]) -> Iterator[None]:
    """Give `layer` its input less `mean` while the block runs; its bias makes up for it, before and after.

    Raises ValueError for a layer without a bias.

    >>> layer, x = nn.Linear(3, 2), torch.rand(5, 3) + 4
    >>> before = layer(x)
    >>> with centred(layer, x.mean(0)):
    ...     torch.testing.assert_close(layer(x), before)
    >>> torch.testing.assert_close(layer(x), before)
    """
    if layer.bias is None:
        raise ValueError("a layer without a bias cannot make up for the mean of its input")
    handle = layer.register_forward_pre_hook(lambda _, given: (given[0] - mean.to(given[0]), *given[1:]))
    _shift(layer, mean)
    try:
        yield
    finally:
        handle.remove()
        _shift(layer, -mean)


@torch.no_grad()
def own_bias(layer: nn.Linear, mean: Float[Tensor, " features"]) -> Float[Tensor, " out"]:
    """The bias that a layer within `centred` will have after it."""
    return layer.bias - layer.weight @ mean.to(layer.weight)


@torch.no_grad()
def _shift(layer: nn.Linear, mean: Tensor) -> None:
    layer.bias.add_(layer.weight @ mean.to(layer.weight))
