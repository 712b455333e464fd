"""CKNNA: centred kernel alignment over the neighbours that two representations share.

As in the authors' published code (Huh et al. 2024, arXiv 2405.07987; `cknna` in metrics.py of platonic-rep,
its defaults): the Gram matrices of items of unit length are kept where j is among the k nearest of i in both
representations and are zero elsewhere; CKNNA is the unbiased HSIC of the two over the root of the product of
each one's own, plus 1e-6. What is kept is not symmetric, so CKNNA(x, y) and CKNNA(y, x) differ by a little.
It is no mean over items: an interval comes from `resampling.half_samples`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.cka import unbiased_hsic
from vlalign_utils.analysis.neighbours import directions, nearest
from vlalign_utils.analysis.prepared_layers import Layers, as_paired, paired_items


def cknna(x: Float[Tensor, "items dim_x"], y: Float[Tensor, "items dim_y"], k: int = 10) -> float:
    """CKNNA of two representations, each item scaled to unit length as it is (not centred).

    Raises ValueError as `cknna_grid` and `nearest` do, and when an item is 0.
    """
    x, y = directions(x.double())[None], directions(y.double())[None]
    near_x, near_y = (_Near.of(points, nearest(points[0], k)[None]) for points in (x, y))
    return _cknna(near_x, near_y, as_paired(paired_items(x, y)))[0, 0, 0].item()


def cknna_grid(x: Layers, y: Layers) -> Float[Tensor, "layers_x layers_y"]:
    """CKNNA of standardised features of unit length, every layer of x (rows) with every layer of y (columns).

    Raises ValueError for fewer than 4 items or 2 neighbours, for different numbers of either, and where a
    layer's own HSIC is not positive: too few neighbours are mutual.
    """
    return cknna_paired(x, y, as_paired(x.points.shape[1]))[0]


def cknna_paired(
    x: Layers, y: Layers, orders: Int[Tensor, "pairings items"]
) -> Float[Tensor, "pairings layers_x layers_y"]:
    """The same when item i of x meets item order[i] of y, for each order.

    An order costs N k^2 for each pair of layers; no distance is computed again.
    """
    paired_items(x.points, y.points)
    return _cknna(_Near.of(x.points, x.neighbours), _Near.of(y.points, y.neighbours), orders)


@dataclass(frozen=True)
class _Near:
    """The entries of each layer's Gram matrix that belong to neighbours."""

    index: Int[Tensor, "layers items k"]
    gram: Float[Tensor, "layers items k"]
    mutual: Float[Tensor, "layers items k"]  # 1 where the item is a neighbour of its neighbour

    @classmethod
    def of(cls, points: Float[Tensor, "layers items d"], index: Int[Tensor, "layers items k"]) -> "_Near":
        """Look up the entries, BLOCK items at a time."""
        gram = torch.zeros(index.shape, dtype=torch.float64, device=points.device)
        mutual = torch.zeros_like(gram)
        for layer, near in enumerate(index):
            for rows in torch.arange(len(near), device=near.device).split(prepared_layers.BLOCK):
                others = points[layer, near[rows]]  # [rows, k, d]
                gram[layer, rows] = (others @ points[layer, rows, :, None])[..., 0]
                mutual[layer, rows] = (near[near[rows]] == rows[:, None, None]).any(dim=-1).double()
        return cls(index, gram, mutual)

    def ordered(self, order: Int[Tensor, " items"]) -> "_Near":
        """Items in another order, neighbours renamed accordingly."""
        return _Near(order.argsort()[self.index[:, order]], self.gram[:, order], self.mutual[:, order])


def _cknna(
    x: _Near, y: _Near, orders: Int[Tensor, "pairings items"]
) -> Float[Tensor, "pairings layers_x layers_y"]:
    n, k = x.index.shape[1:]
    if n < 4 or k < 2 or y.index.shape[-1] != k:
        raise ValueError(
            "CKNNA needs at least 4 items and the same number of neighbours on both sides, 2 or more; there "
            f"are {n} items with {k} and {y.index.shape[-1]} neighbours"
        )
    orders = orders.to(x.index.device)
    own = _own(x)[:, None] * _own(y)
    hsic = torch.stack([_hsic(x, y.ordered(order)) for order in orders])
    return hsic / (own.sqrt() + 1e-6)


def _hsic(x: _Near, y: _Near) -> Float[Tensor, "layers_x layers_y"]:
    """Unbiased HSIC of the entries that belong to neighbours in both."""
    n = x.index.shape[1]
    asked = torch.stack([y.gram, y.gram * y.mutual, torch.ones_like(y.gram)], dim=-1)
    found = []
    for index, gram, mutual in zip(x.index, x.gram, x.mutual, strict=True):
        # For each neighbour in x: y's entry, the same if mutual in y, and 1; all 0 if no neighbour in y.
        same = (index[None, :, :, None] == y.index[:, :, None, :]).double()  # [layers_y, items, k, k]
        other, other_mutual, shared = (same @ asked).unbind(dim=-1)
        kept = gram * shared
        columns = torch.zeros(len(other), n, dtype=gram.dtype, device=gram.device)
        columns.scatter_add_(1, index.flatten().expand(len(other), -1), kept.flatten(1))
        trace = (gram * mutual * other_mutual).sum(dim=(1, 2))  # entries kept at (i, j) and at (j, i)
        sums = kept.sum(dim=(1, 2)), other.sum(dim=(1, 2))
        found.append(unbiased_hsic(trace, *sums, (columns * other.sum(dim=-1)).sum(dim=-1), n))
    return torch.stack(found)


def _own(x: _Near) -> Float[Tensor, " layers"]:
    own = []
    for layer in range(len(x.index)):
        one = slice(layer, layer + 1)
        alone = _Near(x.index[one], x.gram[one], x.mutual[one])
        own.append(_hsic(alone, alone)[0, 0])
        if not own[-1] > 0:
            raise ValueError(
                f"layer {layer}: too few of the k = {x.index.shape[-1]} neighbours are mutual for CKNNA to "
                "be defined; try a smaller k or more items"
            )
    return torch.stack(own)
