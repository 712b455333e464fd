"""Are an image and its caption near each other in one space? Cosines and retrieval across modalities.

Both sides are layers of the same width whose features were standardised by their own items (`prepare`): each
modality is centred on itself, which takes the gap between the modalities away, and no feature outweighs the
others. Cosines are taken after that.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.prepared_layers import Layers, as_paired, paired_items


def adjusted_cosine_grid(x: Layers, y: Layers) -> Float[Tensor, "layers_x layers_y items"]:
    """Cosine of each item of x with its partner in y, minus its mean cosine with all other items of y.

    Raises ValueError when the sides differ in items or width.
    """
    n = _comparable(x, y)
    matched = _matched(x, y, as_paired(n)[0])
    every = x.points @ y.points.sum(dim=1).T  # [layers_x, items, layers_y]
    return matched - (every.mT - matched) / (n - 1)


def adjusted_cosine_paired(
    x: Layers, y: Layers, orders: Int[Tensor, "pairings items"]
) -> Float[Tensor, "pairings layers_x layers_y"]:
    """Its mean when item i of x meets item order[i] of y, for each order."""
    n = _comparable(x, y)
    every = x.points.sum(dim=1) @ y.points.sum(dim=1).T
    matched = torch.stack([_matched(x, y, order).sum(dim=-1) for order in orders])
    return (matched - (every - matched) / (n - 1)) / n


class Matches(NamedTuple):
    """The partner by largest cosine, for every layer of x (rows) with every layer of y (columns)."""

    of_x: Int[Tensor, "layers_x layers_y items"]  # number of an item of y for each item of x
    of_y: Int[Tensor, "layers_x layers_y items"]  # number of an item of x for each item of y

    def right(
        self,
    ) -> tuple[Bool[Tensor, "layers_x layers_y items"], Bool[Tensor, "layers_x layers_y items"]]:
        """Whether each item finds its own partner, x -> y and y -> x: the means over items are R@1."""
        own = torch.arange(self.of_x.shape[-1], device=self.of_x.device)
        return self.of_x == own, self.of_y == own


def best_matches(x: Layers, y: Layers) -> Matches:
    """Retrieve the most similar item across the modalities, in both directions. Chance of R@1 is 1 / N.

    Each block of similarities serves both directions. Raises ValueError when the sides differ in items or
    width.
    """
    n = _comparable(x, y)
    shape = len(x.points), len(y.points), n
    of_x, of_y = (torch.zeros(shape, dtype=torch.long, device=x.points.device) for _ in range(2))
    for a, points in enumerate(x.points):
        highest = points.new_full(shape[1:], -torch.inf)
        for rows in torch.arange(n, device=points.device).split(prepared_layers.BLOCK):
            cosine = points[rows] @ y.points.mT  # [layers_y, rows, items]
            of_x[a, :, rows] = cosine.argmax(dim=-1)
            value, place = cosine.max(dim=1)
            of_y[a] = torch.where(value > highest, rows[place], of_y[a])
            highest = torch.maximum(highest, value)
    return Matches(of_x, of_y)


def recall_paired(
    matches: Matches, orders: Int[Tensor, "pairings items"]
) -> Float[Tensor, "pairings 2 layers_x layers_y"]:
    """R@1 of x -> y and of y -> x when item i of x meets item order[i] of y, for each order.

    What is most similar does not depend on the pairing: an order costs N comparisons a pair of layers.
    """
    orders = orders.to(matches.of_x.device)
    found = [
        torch.stack(
            [(matches.of_x == order).double().mean(-1), (matches.of_y == order.argsort()).double().mean(-1)]
        )
        for order in orders
    ]
    return torch.stack(found)


def _comparable(x: Layers, y: Layers) -> int:
    if x.points.shape[-1] != y.points.shape[-1]:
        raise ValueError(
            f"cosines across modalities need states of one width; there are {x.points.shape[-1]} and "
            f"{y.points.shape[-1]}"
        )
    return paired_items(x.points, y.points)


def _matched(x: Layers, y: Layers, order: Int[Tensor, " items"]) -> Float[Tensor, "layers_x layers_y items"]:
    """Cosines of partners."""
    order = order.to(x.points.device)
    found = []
    for rows in torch.arange(len(order), device=order.device).split(prepared_layers.BLOCK):
        one, other = x.points[:, rows].transpose(0, 1), y.points[:, order[rows]].transpose(0, 1)
        found.append(one @ other.mT)  # [rows, layers_x, layers_y]
    return torch.cat(found).permute(1, 2, 0)
