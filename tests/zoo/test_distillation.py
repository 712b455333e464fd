"""A tower that learns another's features at the same places, and to name regions."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign_utils.zoo.distillation import SMALLEST, Distillation
from vlalign_utils.zoo.naming_stage import Region, RegionNaming, as_batch

SIZES = [4, 2]


class Tower(nn.Module):
    """Features of a cell: a matrix times its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(3)))

    def forward(self, pixels: Tensor) -> Tensor:
        return F.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2) @ self.matrix.T


def teacher(pixels: Tensor) -> Tensor:
    """Two channels for each cell, the second of which never varies."""
    return F.avg_pool2d(pixels.flatten(0, -4), 4).flatten(2).transpose(1, 2)[..., :2] * torch.tensor([3.0, 0])


@pytest.fixture
def batch() -> dict[str, Tensor]:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    regions = [[Region((0, 0, 0.5, 0.5), 0, 1), Region((0.5, 0, 1, 1), 1, 0)], [Region((0, 0, 1, 1), 0, 2)]]
    return as_batch(pixels, regions, 2) | {"teacher_pixels": pixels[:, None]}


@pytest.fixture
def task(batch: dict[str, Tensor]) -> Distillation:
    tower = Tower()
    known = teacher(batch["teacher_pixels"]).flatten(0, 1)
    return Distillation(tower, tower, 6, SIZES, seed=0, teacher=teacher, known=known)


def test_the_loss_is_of_names_of_standardised_features_and_of_what_images_share(
    task: Distillation, batch: dict[str, Tensor]
) -> None:
    taught, weight = teacher(batch["teacher_pixels"]), task.head.weight.detach()
    rows = [taught[image, cell] for image in range(2) for cell in range(4)]
    mean = [sum(float(row[c]) for row in rows) / 8 for c in range(2)]
    spread = (sum((float(row[0]) - mean[0]) ** 2 for row in rows) / 7) ** 0.5
    total = 0.0
    for image in range(2):
        features = task.tower(batch["pixel_values"])[image].detach()
        for cell in range(4):
            for channel, scale in enumerate((spread, SMALLEST)):
                guess = float(weight[channel] @ features[cell])
                total += (guess - (float(taught[image, cell, channel]) - mean[channel]) / scale) ** 2
    naming = RegionNaming(task.tower, task.tower, 6, SIZES, seed=0)(batch)
    shared = sum(
        float(channel.mean()) ** 2 for channel in task.tower(batch["pixel_values"]).detach().unbind(2)
    )
    torch.testing.assert_close(task(batch), naming + total / (2 * 4 * 2) + shared / 6)


def test_what_is_trained_is_the_tower_the_head_and_the_words(
    task: Distillation, batch: dict[str, Tensor]
) -> None:
    assert {name for name, _ in task.named_parameters()} == {
        "tower.matrix",
        "head.weight",
        "words.0",
        "words.1",
    }
    task(batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in task.parameters())
    assert task.head.bias is None


def test_features_are_learned_at_their_places(batch: dict[str, Tensor]) -> None:
    """The error is zero where the cells are the teacher's, and not where two of them change places."""

    def as_they_are(pixels: Tensor) -> Tensor:
        return F.avg_pool2d(pixels.flatten(0, -4), 4).flatten(2).transpose(1, 2)

    known = torch.tensor([[-1.0] * 3, [1.0] * 3]) * 0.5**0.5  # of mean 0 and spread 1
    task = Distillation(nn.Identity(), as_they_are, 3, SIZES, seed=0, teacher=as_they_are, known=known)
    nn.init.eye_(task.head.weight)
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[..., :4, 4:] = 1.0  # the upper right quadrant differs
    features = as_they_are(pixels)
    torch.testing.assert_close(task.regression(features, pixels), torch.tensor(0.0))
    assert features[0, :, 0].tolist() == [0, 1, 0, 0]
    moved = features[:, [0, 2, 1, 3]]
    torch.testing.assert_close(task.regression(moved, pixels), torch.tensor(0.5))
