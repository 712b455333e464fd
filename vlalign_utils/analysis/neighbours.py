"""Do two representations see the same neighbours? Neighbours are found once per layer and then compared.

Notation: N items, k neighbours, Lx and Ly layers of the two representations. Chance is k / (N - 1).
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlalign_utils.evidence.intervals import PERMUTATIONS
from vlalign_utils.evidence.nulls import shuffled

BLOCK = 512  # items whose distances to all others are held at once
PRECISE = 1e-6  # share of |a|^2 + |b|^2: squared distances above it keep ten digits in float64
PAIRED_NUMBERS = 1 << 22  # differences that are held at once


def standardise(
    x: Float[Tensor, "*layers items d"],
    reference: Float[Tensor, "*layers others d"] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*layers items d"]:
    """Centre each feature and scale it to unit variance, as measured on `reference` (by default on x).

    A few features of very large size dominate distances in trained transformers; this takes that away.
    A feature that is constant in the reference is only centred. Computed in float64; the result has `dtype`,
    by default that of x, and at least float32.
    """
    known = (x if reference is None else reference).double()
    centre = known.mean(dim=-2, keepdim=True)
    spread = (known - centre).pow(2).mean(dim=-2, keepdim=True).sqrt()
    # Kernels that sum in another order leave a constant feature with a spread of the order of its own size
    # times epsilon.
    wide = torch.promote_types(x.dtype, torch.float32)
    constant = spread <= 8 * torch.finfo(wide).eps * known.abs().amax(dim=-2, keepdim=True)
    return ((x.double() - centre) / spread.masked_fill(constant, 1.0)).to(dtype or wide)


def squared_distances(x: Float[Tensor, "items d"], rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows items"]:
    """Squared Euclidean distances in float64 of some items to all; infinite to themselves.

    |a|^2 + |b|^2 - 2ab loses what lies below the rounding of |a|^2 + |b|^2: distances for which that matters
    (items of a tight cluster far from the mean) are computed again from differences.
    """
    x = x.double()
    x = x - x.mean(dim=0)
    size = x.square().sum(dim=-1)
    scale = size[rows, None] + size
    squared = torch.addmm(scale, x[rows], x.T, alpha=-2)
    squared[torch.arange(len(rows), device=rows.device), rows] = torch.inf
    lost = (squared < PRECISE * scale).nonzero()
    for some in lost.split(max(1, PAIRED_NUMBERS // x.shape[1])):
        one, other = some.unbind(-1)
        squared[one, other] = (x[rows[one]] - x[other]).square().sum(dim=-1)
    return squared


def nearest(x: Float[Tensor, "items d"], k: int) -> Int[Tensor, "items k"]:
    """Indices of the k Euclidean nearest neighbours of each item, nearest first, itself left out.

    Raises ValueError unless 1 <= k < items, and when items cannot be told apart: not finite, or duplicates.
    """
    n = len(x)
    if not 1 <= k < n:
        raise ValueError(f"k = {k} neighbours need more than {k} items and k >= 1; there are {n} items")
    check_distinct(x)
    x = x.double()
    blocks = torch.arange(n, device=x.device).split(BLOCK)
    return torch.cat([squared_distances(x, rows).topk(k, largest=False).indices for rows in blocks])


def check_distinct(x: Float[Tensor, "items d"]) -> None:
    """Raises ValueError when items cannot be told apart: not finite, or duplicates."""
    if not x.isfinite().all():
        raise ValueError("the representation holds NaN or infinity; neighbours are undefined")
    distinct = len(torch.unique(x, dim=0))
    if distinct < len(x):
        raise ValueError(
            f"only {distinct} of {len(x)} items differ in this representation, so their neighbours are "
            "arbitrary; drop duplicate items, or a layer at which this token is the same in every item"
        )


def layer_neighbours(x: Float[Tensor, "layers items d"], k: int) -> Int[Tensor, "layers items k"]:
    """Neighbours at each layer by cosine similarity of standardised features.

    Raises ValueError naming the layer where neighbours are undefined.
    """
    found = []
    for layer, states in enumerate(x):
        try:
            # On the unit sphere the Euclidean order is the cosine order.
            found.append(nearest(directions(standardise(states, dtype=torch.float64)), k))
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from error
    return torch.stack(found)


def directions(x: Float[Tensor, "items d"]) -> Float[Tensor, "items d"]:
    """Every item scaled to unit length. Raises ValueError when an item has none."""
    length = x.norm(dim=-1, keepdim=True)
    if (length == 0).any():
        raise ValueError(
            "an item lies exactly at the mean (or every feature is constant): it has no direction"
        )
    return x / length


def neighbourhood_overlap(
    x: Float[Tensor, "items dim_x"], y: Float[Tensor, "items dim_y"], k: int = 30
) -> Float[Tensor, " items"]:
    """Fraction of the k nearest neighbours that each item shares between two representations.

    Euclidean distance on the features as they are. Raises ValueError as `nearest` does.
    Source: Doimo et al. 2020, arXiv 2007.03506.
    """
    return overlap_grid(nearest(x, k)[None], nearest(y, k)[None])[0, 0]


def mutual_knn(
    x: Float[Tensor, "items dim_x"], y: Float[Tensor, "items dim_y"], k: int = 10
) -> Float[Tensor, " items"]:
    """Neighbourhood overlap by cosine similarity of standardised features, per item.

    Source: Huh et al. 2024, arXiv 2405.07987.
    """
    return overlap_grid(layer_neighbours(x[None], k), layer_neighbours(y[None], k))[0, 0]


def overlap_grid(
    x: Int[Tensor, "layers_x items k"], y: Int[Tensor, "layers_y items k"]
) -> Float[Tensor, "layers_x layers_y items"]:
    """Overlap per item of every layer of x (rows) with every layer of y (columns)."""
    n, k = x.shape[1:]
    blocks = [_shared(_members(x[:, rows], n), y[:, rows]) for rows in torch.arange(n).split(BLOCK)]
    return torch.cat(blocks, dim=-1) / k


def shuffled_grids(
    x: Int[Tensor, "layers_x items k"],
    y: Int[Tensor, "layers_y items k"],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Float[Tensor, "permutations layers_x layers_y"]:
    """Mean overlap of every pair of layers when x's items are paired with y's items at random.

    The maximum of one shuffled grid is the fair comparison for the best cell of the real grid.
    """
    return shuffled(partial(overlap_paired, x, y), x.shape[1], permutations, seed)


def overlap_paired(
    x: Int[Tensor, "layers_x items k"],
    y: Int[Tensor, "layers_y items k"],
    orders: Int[Tensor, "pairings items"],
) -> Float[Tensor, "pairings layers_x layers_y"]:
    """Mean overlap of every pair of layers when item i of x meets item order[i] of y, for each order."""
    n, k = x.shape[1:]
    orders = orders.to(y.device)
    total = torch.zeros(len(orders), len(x), len(y), device=x.device)
    for rows in torch.arange(n).split(BLOCK):
        members = _members(x[:, rows], n)
        for grid, order in zip(total, orders, strict=True):
            # y's neighbours are renamed to x's numbering.
            renamed = order.argsort()[y[:, order[rows]]]
            grid += _shared(members, renamed).sum(dim=-1)
    return total / (n * k)


def _members(x: Int[Tensor, "layers rows k"], n: int) -> Float[Tensor, "pairs layers"]:
    """Table whose row i * n + j says in which layers item j is a neighbour of item i."""
    layers, rows, _ = x.shape
    table = torch.zeros(layers, rows, n, device=x.device).scatter_(-1, x, 1.0)
    return table.permute(1, 2, 0).reshape(rows * n, layers).contiguous()


def _shared(
    members: Float[Tensor, "pairs layers_x"], y: Int[Tensor, "layers_y rows k"]
) -> Float[Tensor, "layers_x layers_y rows"]:
    """Number of y's neighbours that are also x's: one look-up per neighbour serves all layers of x."""
    layers, rows, k = y.shape
    n = len(members) // rows
    pairs = y + torch.arange(rows, device=y.device)[:, None] * n
    counts = torch.nn.functional.embedding_bag(pairs.reshape(-1, k), members, mode="sum")
    return counts.reshape(layers, rows, -1).permute(2, 0, 1)
