import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlalign_utils.zoo.naming_stage import SCALE, SMOOTHING, Region, RegionNaming, as_batch, cells, chosen


class Tower(nn.Module):
    """Features of an image: its pixels, halved in size, as they are."""

    def forward(self, pixel_values):
        return F.avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2)


def test_a_region_s_mean_weighs_cells_by_the_part_that_lies_in_it():
    assert cells((0, 0, 1, 1), 2).tolist() == [0.25] * 4
    assert cells((0, 0, 0.5, 0.5), 2).tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(cells((0.25, 0, 1, 0.5), 2), torch.tensor([1 / 3, 2 / 3, 0, 0]))
    torch.testing.assert_close(cells((-1.0, 0.4, 2.0, 0.6), 2), torch.full((4,), 0.25))


def test_a_box_outside_the_image_is_refused():
    with pytest.raises(ValueError, match="no area inside the image"):
        cells((1.2, 0, 1.5, 1), 5)


def test_the_loss_is_the_mean_cross_entropy_of_scaled_cosines():
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    regions = [
        [Region((0, 0, 0.5, 0.5), 0, 1), Region((0.5, 0.5, 1, 1), 1, 0)],
        [Region((0, 0, 1, 1), 0, 2)],
    ]
    tower = Tower()
    task = RegionNaming(tower, tower, 3, [4, 2], seed=0)
    loss = task(as_batch(pixels, regions, 4))
    means = [pixels[0, :, :4, :4].mean((1, 2)), pixels[0, :, 4:, 4:].mean((1, 2)), pixels[1].mean((1, 2))]
    expected = []
    for mean, axis, word in zip(means, (0, 1, 0), (1, 0, 2), strict=True):
        words = task.words[axis]
        log = (SCALE * F.cosine_similarity(mean[None], words)).log_softmax(0)
        expected.append(-(1 - SMOOTHING) * log[word] - SMOOTHING * log.mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_parameters_are_chosen_by_their_whole_name():
    tower = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(chosen(tower, r"1\..*")) == ["1.weight", "1.bias"]
    with pytest.raises(ValueError, match="tower_trained: no parameter of Sequential"):
        chosen(tower, r"2\..*")
