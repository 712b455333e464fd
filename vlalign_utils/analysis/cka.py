"""Debiased linear CKA: do two Gram matrices vary together?

A ratio of HSIC by the unbiased estimator of Song et al. 2012 (JMLR 13, equation 5): with K and L of
zero diagonal, HSIC = (tr KL + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1) / (n (n - 3)). It is no
mean over items: an interval comes from `resampling.half_samples`, one recomputation for each half.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.prepared_layers import Layers, as_paired, paired_items


def linear_cka(x: Float[Tensor, "items dim_x"], y: Float[Tensor, "items dim_y"]) -> float:
    """Debiased linear CKA, features as they are: 0 on average when unrelated, 1 at most.

    Raises ValueError as `cka_grid` does. Sources: Kornblith et al. 2019, arXiv 1905.00414; debiased as in
    Nguyen et al. 2021, arXiv 2010.15327.
    """
    x, y = (side.double() - side.double().mean(dim=0) for side in (x, y))  # no change but in rounding
    return _cka(x[None], y[None], as_paired(len(x)))[0, 0, 0].item()


def cka_grid(x: Layers, y: Layers) -> Float[Tensor, "layers_x layers_y"]:
    """Debiased linear CKA of standardised features, every layer of x (rows) with every layer of y (columns).

    Raises ValueError for fewer than 4 items, and where a layer's features do not vary.
    """
    return cka_paired(x, y, as_paired(x.points.shape[1]))[0]


def cka_paired(
    x: Layers, y: Layers, orders: Int[Tensor, "pairings items"]
) -> Float[Tensor, "pairings layers_x layers_y"]:
    """The same when item i of x meets item order[i] of y, for each order.

    An order costs the Gram matrices of y again, N^2 d for each layer, and N^2 for each pair of layers.
    """
    return _cka(x.features, y.features, orders)


def _cka(
    x: Float[Tensor, "layers_x items dx"],
    y: Float[Tensor, "layers_y items dy"],
    orders: Int[Tensor, "pairings items"],
) -> Float[Tensor, "pairings layers_x layers_y"]:
    n = paired_items(x, y)
    if n < 4:
        raise ValueError(f"debiased CKA needs at least 4 items; there are {n}")
    orders = orders.to(x.device)
    products = torch.zeros(len(orders), len(x), len(y), dtype=torch.float64, device=x.device)
    own_x, own_y = products.new_zeros(len(x)), products.new_zeros(len(y))
    sums_x, sums_y = products.new_zeros(len(x), n), products.new_zeros(len(y), n)
    for rows in torch.arange(n, device=x.device).split(prepared_layers.BLOCK):
        gram_x, gram_y = _gram(x, rows), _gram(y, rows)
        for gram, own, sums in ((gram_x, own_x, sums_x), (gram_y, own_y, sums_y)):
            own += gram.square().sum(dim=(1, 2))
            sums[:, rows] = gram.sum(dim=-1)
        for product, order in zip(products, orders, strict=True):
            if not torch.equal(order[rows], rows):
                gram_y = _gram(y, order[rows])
            product += gram_x.flatten(1) @ gram_y[:, :, order].flatten(1).T
    sums_paired = sums_y[:, orders].transpose(0, 1)
    hsic = unbiased_hsic(products, sums_x.sum(-1)[:, None], sums_y.sum(-1), sums_x @ sums_paired.mT, n)
    return hsic / (_own_hsic(own_x, sums_x)[:, None] * _own_hsic(own_y, sums_y)).sqrt()


def _gram(
    x: Float[Tensor, "layers items d"], rows: Int[Tensor, " rows"]
) -> Float[Tensor, "layers rows items"]:
    gram = x[:, rows] @ x.mT
    gram[:, torch.arange(len(rows), device=rows.device), rows] = 0
    return gram


def unbiased_hsic(
    trace: Float[Tensor, "*grid"],
    sum_x: Float[Tensor, "*#grid"],
    sum_y: Float[Tensor, "*#grid"],
    cross: Float[Tensor, "*grid"],
    n: int,
) -> Float[Tensor, "*grid"]:
    """The estimator from its sums over n items: tr KL, 1'K1, 1'L1 and 1'KL1."""
    return (trace + sum_x * sum_y / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def _own_hsic(own: Float[Tensor, " layers"], sums: Float[Tensor, "layers items"]) -> Float[Tensor, " layers"]:
    n, total = sums.shape[1], sums.sum(dim=-1)
    hsic = unbiased_hsic(own, total, total, sums.square().sum(dim=-1), n)
    for layer, known in enumerate(hsic * n * (n - 3) > 1e-12 * own):
        if not known:  # NaN as well
            raise ValueError(
                f"layer {layer}: the Gram matrix does not vary or is not finite, so CKA is undefined"
            )
    return hsic
