"""Ablation of the image tokens that show the thing asked about, against as many others.

An ablated token is the mean image token. Source: Neo et al. 2024, arXiv 2410.07149.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlalign_utils.data.items import Item
from vlalign_utils.data.paired import MinimalPair
from vlalign_utils.driver.edits import Patch
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference import token_groups
from vlalign_utils.inference.scoring import Batch, evaluation_batches
from vlalign_utils.interventions.image_grid import Grid, image_grids, tokens_showing, with_neighbours
from vlalign_utils.interventions.sweep import Edits, Mask, Sweep, answered, replayed

VISIBLE = 0.5  # of a pixel that a thing must cover
OBJECT, BUFFER = "object", "object and neighbours"
RANDOM, NORM = "random", "largest norm"
RANDOM_BUFFER = "random, as many as with neighbours"
ABLATED = (OBJECT, BUFFER, RANDOM, NORM, RANDOM_BUFFER)


def object_ablation(
    vlm: VLM, pairs: Sequence[MinimalPair], seed: int = 0, batch_size: int = 64, label: str = "batches"
) -> Sweep:
    """Replace groups of image tokens, ABLATED, by the mean image token, on the items answered correctly.

    "object" are the tokens whose cell holds a pixel of the thing that an item is asked about. The controls
    show nothing of it: random tokens, and those of the largest norm as they enter layer 0, which act as
    registers. Each group is as large as the object, or takes all there are; the other two are the object
    with all neighbouring tokens, and as many random ones. Means are over all the pairs' items. The sweep
    has one window, of the slots that are patched: 0, and where the model adds to the image tokens between
    its first layers (DeepStack) also those up to where it no longer does, each with the mean there.
    Raises NoGridError where image tokens form no square grids, and ValueError where the stream is never all
    there is.
    """
    whole = vlm.capabilities().whole_from
    if whole > vlm.n_layers:
        vlm.capabilities().require("whole_state")
    items = [pair.item for pair in pairs]
    grids = image_grids(vlm, len(pairs[0].covered))
    means = mean_image_states(vlm, items, whole, batch_size)
    rows = answered(vlm, items, batch_size=batch_size)
    shown = [tokens_showing(pairs[row].covered >= VISIBLE, grids) for row in rows]

    def edits(run: Run, batch: Batch) -> Edits:
        image = _showing(vlm, run)
        chosen = ablated(image, [shown[r] for r in batch.rows], grids, run.resid[0], batch.rows, seed)
        return {
            name: [[Patch(k, mask, mean) for k, mean in enumerate(means)]] for name, mask in chosen.items()
        }

    kept = [items[row] for row in rows]
    return replayed(vlm, kept, ABLATED, [(0, whole)], edits, batch_size, label)


def ablated(
    image: Mask,
    shown: Sequence[Bool[np.ndarray, " image_tokens"]],
    grids: Sequence[Grid],
    entering: Float[Tensor, "batch tokens width"],
    rows: Sequence[int],
    seed: int = 0,
) -> dict[str, Mask]:
    """Select the tokens of each group of ABLATED; `shown` are, by item, the tokens that show the thing."""
    own, buffer = (
        torch.zeros_like(image).masked_scatter(
            image, torch.from_numpy(np.concatenate(tokens)).to(image.device)
        )
        for tokens in (shown, [with_neighbours(own, grids) for own in shown])
    )
    elsewhere = image & ~own
    norm = entering.float().norm(dim=-1).masked_fill(~elsewhere, -1.0)
    rank = norm.argsort(dim=-1, descending=True).argsort(dim=-1)
    registers = (rank < own.sum(-1, keepdim=True)) & elsewhere
    return {
        OBJECT: own,
        BUFFER: buffer,
        RANDOM: token_groups.draw(elsewhere, own.sum(-1), rows, seed, "ablation"),
        NORM: registers,
        RANDOM_BUFFER: token_groups.draw(elsewhere, buffer.sum(-1), rows, seed, "ablation"),
    }


def _showing(vlm: VLM, run: Run) -> Mask:
    image = vlm.pixel_tokens(run.inputs, run)
    assert image is not None  # the grid was found
    return image


def mean_image_states(
    vlm: VLM, items: Sequence[Item], last: int, batch_size: int = 64
) -> Float[Tensor, "slots width"]:
    """The mean over all image tokens of the items, at slots 0 to `last`."""
    total, count = torch.zeros(last + 1, vlm.d_model, dtype=torch.float64), 0
    for batch in evaluation_batches(vlm, items, batch_size):
        inputs: dict[str, Any] = batch.inputs
        run = vlm.record(stop=last, **inputs)
        image = _showing(vlm, run)
        total += torch.stack([stream[image].double().sum(0).cpu() for stream in run.resid])
        count += int(image.sum())
    return (total / count).to(vlm.device, torch.float32)
