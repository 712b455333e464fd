"""Attention weights of a recorded forward, layer by layer, reduced as they come.

Only eager attention makes weights that can be seen, so the decoder runs with it, once, from layer 0.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlalign_utils.driver.anatomy import self_attentions
from vlalign_utils.driver.attention_backend import attention_for
from vlalign_utils.driver.driver import Driver
from vlalign_utils.driver.recording import Run

Weights = Float[Tensor, "batch heads queries keys"]


def attention_weights(driver: Driver, run: Run, reduce: Callable[[Weights], Tensor]) -> dict[int, Tensor]:
    """What `reduce` makes of the attention weights of each layer's self-attention over the run's own tokens.

    Args:
        driver: the model that was recorded.
        run: its record.
        reduce: is given the weights of one layer, [batch, heads, tokens, tokens]; a query's sum to 1.

    Returns the results by layer. Layers without such attention (cross-attention, state spaces) are left out.

    Raises ValueError where the model cannot run with eager attention, or where its eager attention gives no
    weights of that shape in any layer.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
        >>> sums = attention_weights(vlm, vlm.record(**inputs), lambda weights: weights.sum(-1).mean())
        >>> len(sums), round(float(sums[0]), 4)
        (8, 1.0)
    """
    found: dict[int, Tensor] = {}
    with attention_for(driver, "weights"), ExitStack() as hooks, torch.no_grad():
        for k, layer in enumerate(driver.layers):
            for attention in self_attentions(layer):
                hook = partial(_kept, run.grid, found, k, reduce)
                hooks.callback(attention.register_forward_hook(hook).remove)
        driver.replay(run)
    if not found:
        raise ValueError(
            f"{type(driver.model).__name__} gives no attention weights over its tokens in any layer, "
            "not even with eager attention: attention cannot be measured on it"
        )
    return found


def _kept(
    grid: tuple[int, int],
    found: dict[int, Tensor],
    k: int,
    reduce: Callable[[Weights], Tensor],
    module: nn.Module,
    args: Any,
    output: Any,
) -> None:
    parts = output if isinstance(output, tuple | list) else ()
    for part in parts[1:]:
        if isinstance(part, Tensor) and part.ndim == 4 and _over_tokens(part, grid):
            found[k] = reduce(part)


def _over_tokens(part: Tensor, grid: tuple[int, int]) -> bool:
    return (part.shape[0], *part.shape[2:]) == (grid[0], grid[1], grid[1])
