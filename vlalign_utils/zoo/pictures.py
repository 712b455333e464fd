"""The pictures the zoo trains on: drawn once, kept in memory as bytes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vlalign_utils.data.render import SIDE, digit_items, render, render_digit
from vlalign_utils.data.world import Scene, scenes

MEAN = STD = 0.5  # per channel, as saved in the image processor


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with what they show: scenes first, then handwritten digits alone."""

    pixels: UInt8[np.ndarray, "pictures 48 48 3"]
    scenes: list[Scene]
    digits: list[int]

    def normalised(self, rows: list[int]) -> Float[Tensor, "rows 3 48 48"]:
        """Pixels as the image processor hands them to the vision tower."""
        chosen = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float()
        return (chosen / 255 - MEAN) / STD


def draw_pictures(n_scenes: int, n_digits: int, seed: int) -> Pictures:
    """Draw training pictures: scenes of one to three things, and every training digit in turn."""
    world = list(scenes(n_scenes, seed, "train"))
    counts = {value: len(items) for value, items in digit_items("train").items()}
    values = [i % 10 for i in range(n_digits)]
    pixels = np.empty((n_scenes + n_digits, SIDE, SIDE, 3), dtype=np.uint8)
    for row, scene in enumerate(world):
        pixels[row] = render(scene)
    for i, value in enumerate(values):
        item = (i // 10) % counts[value]
        pixels[n_scenes + i] = render_digit(value, item, "train", seed=seed * 1_000_003 + i)
    return Pictures(pixels, world, values)
