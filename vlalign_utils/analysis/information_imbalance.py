"""Information imbalance: does being close in one representation say who is close in another?

Delta(x -> y) is 2 / N times the mean rank, by distance in y, of each item's nearest neighbour in x. It is
2 / N where x says everything about y, 1 on average where it says nothing, and it is not symmetric: look at
both directions. Source: Glielmo et al. 2022, doi 10.1093/pnasnexus/pgac039.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.neighbours import check_distinct, nearest, squared_distances
from vlalign_utils.analysis.prepared_layers import Layers, as_paired, ascending, paired_items


def information_imbalance(
    x: Float[Tensor, "items dim_x"], y: Float[Tensor, "items dim_y"]
) -> Float[Tensor, " items"]:
    """Terms of Delta(x -> y), one an item: their mean is Delta.

    Euclidean distance on the features as they are; full ranks, and an item's rank is 1 plus the number of
    items strictly closer. Raises ValueError where the items of x or y cannot be told apart.
    """
    check_distinct(y)
    return _grid(nearest(x, 1).T, y[None])[0, 0]


def imbalance_grid(x: Layers, y: Layers) -> Float[Tensor, "layers_x layers_y items"]:
    """Terms of Delta(x -> y), one an item, for every layer of x (rows) with every layer of y (columns).

    Ranks are by cosine similarity of standardised features. `imbalance_grid(y, x)` holds Delta(y -> x), with
    the layers of y in rows. Raises ValueError when the sides have different numbers of items.
    """
    paired_items(x.points, y.points)
    return _grid(x.neighbours[..., 0], y.points)


def imbalance_paired(
    x: Layers, y: Layers, orders: Int[Tensor, "pairings items"]
) -> Float[Tensor, "pairings layers_x layers_y"]:
    """Delta(x -> y) of every pair of layers when item i of x meets item order[i] of y, for each order.

    The ranks of a layer of y are sorted once for all orders: 100 of them cost little more than one.
    """
    n = paired_items(x.points, y.points)
    total = torch.zeros(len(orders), len(x.points), len(y.points), dtype=torch.float64, device=orders.device)
    for layer, _, ranks in _ranks(x.neighbours[..., 0], y.points, orders):
        total[:, :, layer] += ranks.sum(dim=-1).to(total.device)
    return total * 2 / n**2


def _grid(
    first: Int[Tensor, "layers_x items"], y: Float[Tensor, "layers_y items d"]
) -> Float[Tensor, "layers_x layers_y items"]:
    n = y.shape[1]
    grid = torch.zeros(len(first), len(y), n, dtype=torch.float64, device=y.device)
    for layer, rows, ranks in _ranks(first, y, as_paired(n)):
        grid[:, layer, rows] = ranks[0].double()
    return grid * 2 / n


def _ranks(
    first: Int[Tensor, "layers_x items"],
    y: Float[Tensor, "layers_y items d"],
    orders: Int[Tensor, "pairings items"],
) -> Iterator[tuple[int, Int[Tensor, " rows"], Int[Tensor, "pairings layers_x rows"]]]:
    """For a layer and some items of y: the ranks of their partners' nearest neighbours in x."""
    orders = orders.to(y.device)
    partners = orders.argsort(dim=-1)  # of the items of y
    for layer, points in enumerate(y.double()):
        for rows in torch.arange(len(points), device=y.device).split(prepared_layers.BLOCK):
            distance = squared_distances(points, rows)  # in the order of the distances
            named = first[:, partners[:, rows]].transpose(
                0, 1
            )  # [pairings, layers_x, rows], in x's numbering
            asked = orders[:, None, None].expand(*named.shape[:2], 1, -1).gather(-1, named[:, :, None])
            asked = asked.reshape(-1, len(rows)).T  # [rows, pairings * layers_x], in y's numbering
            closer = torch.searchsorted(ascending(distance), distance.gather(1, asked))
            yield layer, rows, closer.T.reshape(named.shape) + 1
