"""Remove attention or MLP submodules of a window of layers: do images suffer more than text?

A removed submodule adds nothing to the residual stream. Source: SubFit 2606.02559, without its fitted bypass.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlalign_utils.data.items import Item
from vlalign_utils.driver.anatomy import key_source, self_attentions
from vlalign_utils.driver.edits import check_layer
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import evaluate
from vlalign_utils.interventions.sweep import Mask, Sweep, answered, windows

PARTS = {"attention": ("attention",), "MLP": ("MLP",), "both": ("attention", "MLP")}


def submodules(layer: nn.Module) -> dict[str, list[nn.Module]]:
    """The attention of a decoder layer (to an image too), and its MLP: of its other parts the largest.

    Raises ValueError when they cannot be told apart: no attention, or an MLP that is no module of its own.
    """
    inner = [*self_attentions(layer), *(m for m in layer.modules() if key_source(m) and m is not layer)]
    parts = list(layer.children())
    attends = [part for part in parts if any(m in inner for m in part.modules())]
    size = {part: sum(p.numel() for p in part.parameters()) for part in parts if part not in attends}
    largest = max(size, key=lambda part: size[part], default=None)
    kind = type(layer).__name__
    if not attends:
        raise ValueError(f"{kind} has no attention that could be removed")
    # A bare projection would leave the other half of its MLP at work.
    if largest is None or isinstance(largest, nn.Linear) or not any(p.ndim > 1 for p in largest.parameters()):
        raise ValueError(f"{kind} has no module of its own for its MLP, so it cannot be removed")
    return {"attention": attends, "MLP": [largest]}


@contextmanager
def removed(
    vlm: VLM, first: int, last: int, parts: Sequence[str] = PARTS["both"], tokens: Mask | None = None
) -> Iterator[VLM]:
    """Run the body with these submodules of layers `first..last` giving zeros; weights are not touched.

    `tokens` are the positions [batch, tokens] that get zeros, None for all; the others still see their keys
    and values.

    Raises IndexError for layers that are not there, ValueError as `submodules` does, for unknown parts and,
    in the body, where a submodule does not return one state for each of the tokens.
    """
    check_layer(first, "first", 0, vlm.n_layers - 1)
    check_layer(last, "last", first, vlm.n_layers - 1)
    unknown = set(parts) - set(PARTS["both"])
    if unknown:
        raise ValueError(f"parts name {sorted(unknown)[0]!r}, expected some of {', '.join(PARTS['both'])}")
    found = [submodules(vlm.layers[k]) for k in range(first, last + 1)]
    with ExitStack() as hooks:
        for module in (m for of_layer in found for part in parts for m in of_layer[part]):
            hooks.callback(module.register_forward_hook(partial(_nothing, tokens)).remove)
        yield vlm


def _nothing(tokens: Mask | None, module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return _without(output, tokens, module)
    return (_without(output[0], tokens, module), *output[1:])


def _without(states: Tensor, tokens: Mask | None, module: nn.Module) -> Tensor:
    if tokens is None:
        return torch.zeros_like(states)
    if states.numel() != tokens.numel() * states.shape[-1]:
        raise ValueError(
            f"{type(module).__name__} returns states of shape {list(states.shape)}, which are not those of "
            f"{list(tokens.shape)} tokens: it cannot be skipped for some of them"
        )
    # Experts may return all tokens in one dimension.
    gone = tokens.reshape(*states.shape[:-1], 1).to(states.device)
    return states.masked_fill(gone, 0)


SIDES = ("images", "captions")


def compression_sweep(
    vlm: VLM,
    items: Sequence[Item],
    width: int,
    batch_size: int = 64,
    label: str = "windows",
    *,
    stride: int = 1,
) -> dict[str, Sweep]:
    """Remove each of PARTS from windows of `width` layers, `stride` apart, asked about images and captions.

    On the items answered correctly both ways, in one order: the two sweeps, named as in SIDES, are paired.
    Raises ValueError as `submodules` does, and when no item is answered both ways.
    """
    spans = windows(vlm.n_layers, width, stride)
    for layer in vlm.layers:
        submodules(layer)
    captioned = [item.caption_version() for item in items]
    rows = answered(vlm, items, captioned, batch_size=batch_size)
    versions = dict(
        zip(SIDES, ([version[row] for row in rows] for version in (items, captioned)), strict=True)
    )
    shape = len(rows), len(spans)
    clean = {side: evaluate(vlm, kept, batch_size) for side, kept in versions.items()}
    prob = {side: {name: np.zeros(shape) for name in PARTS} for side in SIDES}
    correct = {side: {name: np.zeros(shape, dtype=bool) for name in PARTS} for side in SIDES}
    for column, span in enumerate(progress(spans, label)):
        for name, parts in PARTS.items():
            with removed(vlm, *span, parts):
                for side, kept in versions.items():
                    scores = evaluate(vlm, kept, batch_size)
                    prob[side][name][:, column], correct[side][name][:, column] = scores.prob, scores.correct
    chance = np.array([items[row].chance for row in rows])
    return {
        side: Sweep(spans, chance, clean[side].prob, clean[side].correct == 1, prob[side], correct[side])
        for side in SIDES
    }
