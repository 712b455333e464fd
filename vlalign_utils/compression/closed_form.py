"""Ridge regressions in closed form for the place of a removed submodule, on tensors alone.

X holds a submodule's inputs and Y its outputs, one row for each token; everything is computed in the
precision of the arguments, which should be float64. Only products are needed: X'X [in, in] and X'Y [in, out].
"""

import torch
from jaxtyping import Float
from torch import Tensor


def stream_change(
    before: Float[Tensor, "tokens width"], after: Float[Tensor, "tokens width"]
) -> Float[Tensor, " tokens"]:
    """Change of the residual stream by a submodule: one minus the cosine, plus the relative change of length.

    Of a stream h that becomes h + y it is (1 - cos(h, h + y)) + | |h + y| / |h| - 1 |; 2 for a stream of
    length 0 that is changed at all, and 0 for one that is not. What changes a stream least is removed first.
    Source: our reading of SubFit (arXiv 2606.02559), which ranks by rotation and stretch.

    >>> h = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> stream_change(h, torch.tensor([[2.0, 0.0], [0.0, 1.0]])).tolist()
    [1.0, 1.0]
    """
    length, now = before.norm(dim=-1), after.norm(dim=-1)
    turned = 1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)
    stretched = (now / length.clamp_min(torch.finfo(before.dtype).tiny) - 1).abs()
    return torch.where(length > 0, turned + stretched, 2.0 * (now > 0).to(before.dtype))


def ridge(
    xx: Float[Tensor, "in in"], xy: Float[Tensor, "in out"], strength: float
) -> Float[Tensor, "in out"]:
    """Weights W that minimise |XW - Y|^2 + a |W|^2, with a = `strength` times the mean of X'X's diagonal.

    Raises ValueError for a strength that is not above 0: inputs may lie in fewer dimensions than they have.

    >>> x, y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> ridge(x.T @ x, x.T @ y, strength=1.0).flatten().tolist()
    [0.5, 1.0]
    """
    if not strength > 0:
        raise ValueError(f"strength is {strength}, expected a number above 0")
    added = strength * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    solved: Tensor = torch.linalg.solve(xx + added, xy)
    return solved


def low_rank(
    xx: Float[Tensor, "in in"], xy: Float[Tensor, "in out"], rank: int, strength: float
) -> tuple[Float[Tensor, "in rank"], Float[Tensor, "rank out"]]:
    """Reduced-rank ridge regression: A, B of this rank, whose AB is the ridge solution, projected.

    The ridge solution's fitted values XW are projected on their first `rank` right singular vectors V:
    A = WV, B = V'. Source: Izenman 1975, Journal of Multivariate Analysis 5: 248-264.
    Raises ValueError for a rank that is not within 1 to the smaller side, and as `ridge` does.
    """
    if not 1 <= rank <= min(xy.shape):
        raise ValueError(f"rank is {rank}, expected 1..{min(xy.shape)}")
    weights = ridge(xx, xy, strength)
    # Right singular vectors of XW are eigenvectors of (XW)'XW, in ascending order.
    _, vectors = torch.linalg.eigh(weights.T @ xx @ weights)
    kept = vectors[:, -rank:].flip(1)
    return weights @ kept, kept.T


def shared_basis(grams: Float[Tensor, "modules in in"], size: int) -> Float[Tensor, "in size"]:
    """Orthonormal basis of the inputs that several submodules have in common.

    The first `size` eigenvectors of the sum of their X'X, each of them first divided by its trace, so that
    modules with long inputs do not decide alone. Raises ValueError for a size outside 1 to the width.
    """
    width = grams.shape[-1]
    if not 1 <= size <= width:
        raise ValueError(f"size is {size}, expected 1..{width}")
    traces = grams.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(grams.dtype).tiny)
    _, vectors = torch.linalg.eigh((grams / traces[:, None, None]).sum(0))
    return vectors[:, -size:].flip(1)


def in_basis(
    basis: Float[Tensor, "in size"],
    xx: Float[Tensor, "in in"],
    xy: Float[Tensor, "in out"],
    strength: float,
) -> Float[Tensor, "size out"]:
    """Ridge regression on the coordinates XP of the inputs in a basis P; the product P B acts on inputs.

    Raises ValueError as `ridge` does.
    """
    return ridge(basis.T @ xx @ basis, basis.T @ xy, strength)


def quantised(weight: Float[Tensor, "out in"], bits: int, group: int) -> Float[Tensor, "out in"]:
    """The weight as it is after rounding to so many bits, symmetric about 0, with one scale for each group.

    Groups are of `group` neighbouring inputs of one output; the last may be smaller. Rounded to the nearest,
    without any calibration: what a runtime of that precision would compute with, but for its own rounding.
    Raises ValueError for bits outside 2 to 16 or a group below 1.

    >>> quantised(torch.tensor([[0.9, -7.0, 3.4, 70.0]]), bits=4, group=2).tolist()
    [[1.0, -7.0, 0.0, 70.0]]
    """
    if not 2 <= bits <= 16 or group < 1:
        raise ValueError(f"bits are {bits}, the group is {group}: expected 2..16, and at least 1")
    top = 2 ** (bits - 1) - 1
    parts = []
    for part in weight.split(group, dim=1):
        scale = part.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / top
        parts.append((part / scale).round() * scale)
    return torch.cat(parts, dim=1)
