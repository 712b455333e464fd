"""Cost of pooled states of every layer, beside the forward that they come from."""

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.sizes import Size, build
from benchmarks.timing import Row, compare
from vlalign_utils.inference.states import capture, token_masks

GROUPS = ("image", "text")
BATCH = 2
REPEATED = 4  # an overhead of a few per cent shows in many rounds only


def rows(size: Size) -> list[Row]:
    """Two groups at every layer: pooled inside the hooks, by nnsight, and from a whole record.

    The plain forward gives no states: its row says what capturing adds to it.
    """
    vlm, inputs = build(size, BATCH)
    masks = list(token_masks(vlm, vlm.record(stop=0, **inputs), GROUPS).values())

    def pooled() -> Tensor:
        states = capture(vlm, inputs, GROUPS)
        return torch.stack([states[group] for group in GROUPS])

    def recorded() -> Tensor:
        run = vlm.record(**inputs)
        means = [[(h * m[..., None]).sum(1) / m.sum(-1)[:, None] for h in run.resid] for m in masks]
        return torch.stack([torch.stack(layers) for layers in means]).float().cpu()

    @torch.no_grad()
    def forward() -> Tensor:
        vlm.model(**inputs, use_cache=False)
        return expected

    expected = recorded()
    ways = {
        "plain forward, no states": forward,
        "capture": pooled,
        "nnsight": lambda: naive.pooled_nnsight(vlm, inputs, masks).float().cpu(),
        "record everything, then pool": recorded,
    }
    tolerance = 1e-5 if size.dtype == torch.float32 else 0.05
    return compare("states of every layer, two pooled groups", ways, REPEATED * size.rounds, tolerance)
