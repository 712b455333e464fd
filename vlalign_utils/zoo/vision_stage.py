"""Stage `vision`: the tower learns to see, by naming what each region of an image shows.

Image features, as the connector makes them of the tower's, are averaged over a region and classified along
each of its kind's axes (a thing's size, colour and form; a bar's colour and height; the word of a sign; a
digit). The connector serves here as a projection head only, and is restored before the next stage. No text is
read, so that whatever image and text share later was learnt by the stages that bring them together.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlalign_utils.data.kinds import KINDS, Kind, Region
from vlalign_utils.data.render import SIDE
from vlalign_utils.tuning.train_loop import of_all
from vlalign_utils.zoo.architecture import Shell, image_features

AXES = [(kind, axis) for kind in KINDS.values() for axis in kind.axes]


class RegionNaming(nn.Module):
    """The mean cross-entropy, over all axes, of naming the regions of a batch of images."""

    def __init__(self, model: PreTrainedModel, recipe: Shell) -> None:
        """Take the model, and add a head for all axes that is trained with it and not kept."""
        super().__init__()
        self.model, self.recipe = model, recipe
        width = model.config.get_text_config().hidden_size
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(len(axis) for _, axis in AXES))

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The loss of a batch of `naming_batches`."""
        features = image_features(self.model, self.recipe, batch["pixels"])
        cells = batch["cells"].to(features.dtype)
        regions = self.norm(torch.einsum("rt,rtd->rd", cells, features[batch["image"]]))
        scores = self.head(regions).float().split([len(axis) for _, axis in AXES], dim=1)
        counts = torch.tensor([float(len(rows)) for rows in batch["rows"]], device=regions.device)
        shared = of_all(counts)
        losses = [
            # The factor is 1 where no other process has a share of the batch.
            F.cross_entropy(axis[rows], target) * (count / of_axis)
            for axis, rows, target, count, of_axis in zip(
                scores, batch["rows"], batch["targets"], counts, shared, strict=True
            )
            if len(rows)
        ]
        return torch.stack(losses).sum() / (shared > 0).sum()


def naming_batches(
    processor: Any,
    grid: int,
    batch_size: int,
    steps: int,
    seed: int,
    first: int = 0,
    share: slice = slice(None),
) -> Iterator[dict[str, Any]]:
    """Batches `first` to `steps` of images and regions; the same step always gets the same batch.

    `grid` is the side of the square of image tokens, `share` the part of the images that a process takes.
    """
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        shown = draw(batch_size, rng)[share]
        found = [(i, kind, region) for i, (kind, x) in enumerate(shown) for region in kind.regions(x)]
        rows: list[list[int]] = [[] for _ in AXES]
        targets: list[list[int]] = [[] for _ in AXES]
        for row, (_, kind, region) in enumerate(found):
            for axis, said in zip(kind.axes, region.words, strict=True):
                at = AXES.index((kind, axis))
                rows[at].append(row)
                targets[at].append(axis.index(said))
        yield {
            "pixels": pixels(processor, [kind.render(x) for kind, x in shown]),
            "image": torch.tensor([i for i, _, _ in found]),
            "cells": torch.stack([_cells(region, grid) for _, _, region in found]),
            "rows": [torch.tensor(r, dtype=torch.long) for r in rows],
            "targets": [torch.tensor(t, dtype=torch.long) for t in targets],
        }


def draw(n: int, rng: np.random.Generator) -> list[tuple[Kind, Any]]:
    """`n` training subjects with their kinds, which come in the proportion of their shares."""
    kinds = list(KINDS.values())
    counts = rng.multinomial(n, [kind.share for kind in kinds])
    seed = int(rng.integers(2**31))
    shown = [
        (k, x) for k, count in zip(kinds, counts, strict=True) for x in k.draw(int(count), seed, "train")
    ]
    return [shown[i] for i in rng.permutation(n)]


def pixels(processor: Any, images: list[np.ndarray]) -> dict[str, Any]:
    """Pixel inputs of the model for these images."""
    batch = [[Image.fromarray(image)] for image in images]
    return dict(processor.image_processor(images=batch, return_tensors="pt"))


def _cells(region: Region, grid: int) -> Float[Tensor, " tokens"]:
    """The weight of each image token in the mean over a region: the tokens whose middle lies in it."""
    middle = (np.arange(grid) + 0.5) * SIDE / grid
    down = (middle >= region.top) & (middle < region.bottom)
    across = (middle >= region.left) & (middle < region.right)
    inside = torch.from_numpy(np.outer(down, across).ravel()).float()
    if not inside.any():
        raise ValueError(
            f"{region} holds the middle of no token of {grid} x {grid}: give the tower more patches"
        )
    return inside / inside.sum()


def grid_side(model: PreTrainedModel, recipe: Shell, processor: Any) -> int:
    """The side of the square of tokens that an image becomes."""
    black = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    with torch.no_grad():
        return math.isqrt(image_features(model, recipe, pixels(processor, [black])).shape[1])
