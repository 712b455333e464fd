"""Stage `vision` of a tower that begins from nothing: it learns another tower's features, and names.

A linear head, used here only, maps the features of each image token to those that the other tower has at the
same place (Romero et al. 2015, *FitNets*, arXiv 1412.6550): much more is said of an image than its names.
What all images share is kept small, since a connector without a bias cannot take it up (see `centred`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlalign_utils.tuning.train_loop import of_all
from vlalign_utils.zoo.naming_stage import Features, RegionNaming

SMALLEST = 1e-3  # standard deviation of a channel of the other tower


class Distillation(RegionNaming):
    """The losses of names, of another tower's standardised features, and of what all images share."""

    mean: Float[Tensor, " channels"]
    spread: Float[Tensor, " channels"]

    def __init__(
        self,
        tower: nn.Module,
        features: Features,
        width: int,
        sizes: Sequence[int],
        seed: int,
        *,
        teacher: Features,
        known: Float[Tensor, "rows channels"],
    ) -> None:
        """Take what `RegionNaming` does, the other tower's features, and some that tell mean and spread."""
        super().__init__(tower, features, width, sizes, seed)
        self.teacher = teacher
        self.register_buffer("mean", known.mean(0))
        self.register_buffer("spread", known.std(0).clamp(min=SMALLEST))
        self.head = nn.Linear(width, known.shape[1], bias=False)
        nn.init.normal_(self.head.weight, std=width**-0.5, generator=torch.Generator().manual_seed(seed))

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The loss of a batch of `as_batch` that has the other tower's `teacher_pixels`."""
        features = self.features(batch["pixel_values"])
        shared = features.mean((0, 1)).square().mean()
        return self.naming(features, batch) + self.regression(features, batch["teacher_pixels"]) + shared

    def regression(
        self,
        features: Float[Tensor, "images cells features"],
        pixels: Float[Tensor, "images ... height width"],
    ) -> Float[Tensor, ""]:
        """Mean squared error of the other tower's features, in standard deviations of each channel."""
        with torch.no_grad():
            target = (self.teacher(pixels).float() - self.mean) / self.spread
        errors = (self.head(features).float() - target).square().mean((1, 2))
        return errors.sum() / of_all(torch.tensor(float(len(errors)), device=errors.device))
