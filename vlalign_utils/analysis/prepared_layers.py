"""Layers of one representation, standardised and searched once, for every grid of the geometry.

    x, y = prepare(image_states, k=10), prepare(caption_states, k=10)
    overlap_grid(x.neighbours, y.neighbours), imbalance_grid(x, y), cka_grid(x, y), ...

No matrix of items by items is kept: each grid computes a layer's distances or Gram matrix once, BLOCK items
at a time, and uses each block for all layers of the other side and, in a null, for all pairings.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlalign_utils.analysis.neighbours import layer_neighbours, standardise

BLOCK = 128  # items whose distances to all others are held at once, in every layer


@dataclass(frozen=True)
class Layers:
    """Standardised states of every layer, as directions and lengths, with nearest neighbours by cosine."""

    points: Float[Tensor, "layers items d"]  # float64, of unit length: Euclidean order is cosine order
    length: Float[Tensor, "layers items"]
    neighbours: Int[Tensor, "layers items k"]  # nearest first

    @property
    def features(self) -> Float[Tensor, "layers items d"]:
        """The standardised states."""
        return self.points * self.length[..., None]


def prepare(states: Float[Tensor, "layers items d"], k: int) -> Layers:
    """Standardise each layer and find k neighbours of each item; k = 10 in the literature on alignment.

    Raises ValueError naming the layer where an item is a duplicate, not finite, or without direction, and
    when there are not more than k items.
    """
    neighbours = layer_neighbours(states, k)
    features = torch.stack([standardise(layer, dtype=torch.float64) for layer in states])
    length = features.norm(dim=-1)
    return Layers(features / length[..., None], length, neighbours)


def paired_items(x: Float[Tensor, "layers_x items_x dx"], y: Float[Tensor, "layers_y items_y dy"]) -> int:
    """The number of items. Raises ValueError unless both sides have the same."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{x.shape[1]} items on one side and {y.shape[1]} on the other; item i of both must be one pair"
        )
    return x.shape[1]


def as_paired(n: int) -> Int[Tensor, "1 items"]:
    """The true pairing, for the functions that take several."""
    return torch.arange(n)[None]


def ascending(x: Float[Tensor, "*rows items"]) -> Float[Tensor, "*rows items"]:
    """The last axis sorted."""
    if x.device.type == "cpu":  # numpy sorts with vector instructions, six times as fast
        return torch.from_numpy(np.sort(x.numpy(), axis=-1))
    return x.sort(dim=-1).values
