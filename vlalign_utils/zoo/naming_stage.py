"""Stage `vision` of a chain from parts: the tower learns to name what each region of an image shows.

The features that the connector is given are averaged over a region and compared, by their cosine, with one
learnt direction for each word. The comparison is used here only, and no text model is: what image and text
share later was learnt by the stages that bring them together. BatchNorm keeps the statistics that a tower
came with, so that an image's features do not depend on what else is in its batch.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign_utils.tuning.train_loop import Schedule, of_all

SCALE = 20.0  # of cosines, as logits
SMOOTHING = 0.1  # of labels
HEAD_RATE = 10.0  # times the schedule's rate

Features = Callable[[Tensor], Tensor]  # of pixel values: [images, cells, width], row by row
Box = tuple[float, ...]  # four: left, top, right and bottom, as shares of the image's side


@dataclass(frozen=True)
class Region:
    """A part of an image, and the number of the word that names it along one axis."""

    box: Box
    axis: int
    word: int


class RegionNaming(nn.Module):
    """The mean cross-entropy, over regions, of naming the regions of a batch of images."""

    def __init__(
        self, tower: nn.Module, features: Features, width: int, sizes: Sequence[int], seed: int
    ) -> None:
        """Take the tower, its features of `width` channels, and the number of words of each axis."""
        super().__init__()
        self.tower = tower
        self.features = features
        own = torch.Generator().manual_seed(seed)
        self.words = nn.ParameterList(torch.randn(size, width, generator=own) * 0.02 for size in sizes)

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The loss of a batch of `as_batch`."""
        return self.naming(self.features(batch["pixel_values"]), batch)

    def naming(self, given: Float[Tensor, "images cells width"], batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The loss of naming, from the features of the images."""
        features = given.transpose(1, 2)
        cells = batch["cells"].to(features.dtype)
        regions = torch.einsum("rc,rwc->rw", cells, features[batch["image"]]).float()
        total = of_all(torch.tensor(float(len(regions)), device=regions.device))
        losses = []
        for axis, words in enumerate(self.words):
            rows = batch["axis"] == axis
            if rows.any():
                cosines = F.normalize(regions[rows], dim=1) @ F.normalize(words, dim=1).T
                losses.append(
                    F.cross_entropy(
                        SCALE * cosines, batch["word"][rows], reduction="sum", label_smoothing=SMOOTHING
                    )
                )
        return torch.stack(losses).sum() / total


def as_batch(
    pixel_values: Float[Tensor, "images ... height width"], regions: Sequence[Sequence[Region]], grid: int
) -> dict[str, Any]:
    """Images and their regions as a batch, for a tower that makes grid x grid features of an image."""
    each = [(i, region) for i, found in enumerate(regions) for region in found]
    return {
        "pixel_values": pixel_values,
        "image": torch.tensor([i for i, _ in each]),
        "cells": torch.stack([cells(region.box, grid) for _, region in each]),
        "axis": torch.tensor([region.axis for _, region in each]),
        "word": torch.tensor([region.word for _, region in each]),
    }


def cells(box: Box, grid: int) -> Float[Tensor, "cells"]:
    """The weight of each cell of an image in the mean over a box: the part of the box that lies in it.

    Raises ValueError for a box without an area inside the image.
    """
    left, top, right, bottom = box
    starts = torch.arange(grid) / grid
    ends = starts + 1 / grid
    across = (ends.clamp(max=right) - starts.clamp(min=left)).clamp(min=0)
    down = (ends.clamp(max=bottom) - starts.clamp(min=top)).clamp(min=0)
    inside = torch.outer(down, across).flatten()
    if not inside.sum() > 0:
        raise ValueError(f"the box {box} has no area inside the image: expected shares of its side, 0 to 1")
    return inside / inside.sum()


def chosen(tower: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Parameters of the tower whose whole name matches. Raises ValueError where none does."""
    found = {name: p for name, p in tower.named_parameters() if re.fullmatch(pattern, name)}
    if not found:
        raise ValueError(f"tower_trained: no parameter of {type(tower).__name__} matches {pattern!r}")
    return found


def adamw(trained: dict[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW, with a higher rate for the words' directions, which begin from nothing."""
    words = [p for name, p in trained.items() if name.startswith("words.")]
    rest = [p for name, p in trained.items() if not name.startswith("words.")]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": words, "times": HEAD_RATE}]
    return [torch.optim.AdamW(groups, schedule.lr, weight_decay=schedule.weight_decay, fused=True)]
