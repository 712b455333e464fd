"""Share of attention that words pay to the image, layer by layer.

A query's weights sum to 1 over the tokens it sees; the share is what falls on image tokens, averaged over
heads and over the queries. Its null is what attention that is spread evenly over the visible tokens would
pay. Source: the measure of 2606.09131.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlalign_utils.data.items import Item
from vlalign_utils.driver.attention_weights import attention_weights
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference import token_groups
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import evaluation_batches
from vlalign_utils.inference.token_groups import Mask, Tokens

QUERIES = ("question", "last")


@dataclass(frozen=True)
class AttentionShare:
    """Shares by group of queries, NaN in layers without such attention; `even` is the null of each item."""

    share: dict[str, Float[np.ndarray, "items layers"]]
    even: dict[str, Float[np.ndarray, " items"]]


def attention_share(
    vlm: VLM, items: Sequence[Item], batch_size: int = 16, label: str = "attention"
) -> AttentionShare:
    """Measure how much of their attention the question's tokens, and the prompt's last one, pay to the image.

    Args:
        vlm: a model with its processor.
        items: questions about images; their answers are given, and not among the queries.
        batch_size: items of one forward.
        label: of the progress bar.

    Raises ValueError where images take no positions, or eager attention gives no weights.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> found = attention_share(load_vlm("zoo/llava"), load_suite("attributes", 4))
        >>> found.share["last"].shape, bool((found.share["last"] <= 1).all())
        ((4, 8), True)
    """
    vlm.capabilities().require("image_positions")
    share = {name: np.full((len(items), vlm.n_layers), np.nan) for name in QUERIES}
    even = {name: np.zeros(len(items)) for name in QUERIES}
    for batch in progress(list(evaluation_batches(vlm, items, batch_size)), label):
        inputs: dict[str, Any] = {**batch.inputs}
        run = vlm.record(**inputs)
        image = vlm.image_mask(run.inputs, run)
        assert image is not None
        tokens = token_groups.read_tokens(run.inputs, image, batch.answers >= 0, batch.rows)
        last = token_groups.GROUPS["last"](tokens)
        queries = {"question": token_groups.GROUPS["question"](tokens) & ~last, "last": last}
        for name, evenly in zip(QUERIES, _shares(_even_weights(tokens), queries, image), strict=True):
            even[name][batch.rows] = evenly.numpy()
        found = attention_weights(vlm, run, partial(_shares, queries=queries, image=image))
        for layer, shares in found.items():
            for name, values in zip(QUERIES, shares, strict=True):
                share[name][batch.rows, layer] = values.numpy()
    return AttentionShare(share, even)


def _shares(
    weights: Float[Tensor, "batch heads tokens tokens"], queries: Mapping[str, Mask], image: Mask
) -> Float[Tensor, "groups batch"]:
    """Mean share on the image of each group of queries; a group without a token has NaN."""
    paid = (weights.float() * image[:, None, None]).sum(-1).mean(1).double()  # [batch, queries]
    asked = torch.stack([queries[name] for name in QUERIES])
    return ((paid * asked).sum(-1) / asked.sum(-1)).cpu()


def _even_weights(tokens: Tokens) -> Float[Tensor, "batch 1 tokens tokens"]:
    """Attention that is spread evenly over the tokens up to each query, padding left out."""
    size = tokens.attended.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool, device=tokens.attended.device).tril()
    visible = (seen & tokens.attended[:, None]).double()
    return (visible / visible.sum(-1, keepdim=True).clamp(min=1))[:, None]
