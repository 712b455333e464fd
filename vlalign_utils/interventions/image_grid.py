"""Which image tokens show which part of a picture: a square of tokens, row by row, or nothing we can tell."""

import math

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from scipy.ndimage import binary_dilation

from vlalign_utils.driver.vlm import QUESTIONS, VLM
from vlalign_utils.evidence.intervals import rng

TRIED = 36  # cells, at most
FOUND = 0.9  # of them must change their own token most


class NoGridError(ValueError):
    """The image tokens of a model are no square grid; the message is the reason that a chapter prints."""


def image_grid(vlm: VLM, side: int) -> int:
    """Side of the square of tokens, row by row, that a picture of `side` x `side` pixels becomes.

    Found by trying: other noise in one cell of the picture must change the token of that cell most. Raises
    NoGridError, saying what was seen, for a model whose image tokens are no such square.
    """
    found = vlm.capabilities().image_positions
    if not found.works:
        raise NoGridError(f"{type(vlm.model).__name__} does not allow image_positions: {found.detail}")
    model, noise = type(vlm.model).__name__, rng(0, "image grid")
    picture = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
    n = len(_entering(vlm, [picture])[0])
    grid = math.isqrt(n)
    if grid < 2 or grid**2 != n:
        raise NoGridError(
            f"{model} makes {n} tokens of a picture: they are no square grid of two or more a side"
        )
    cells = noise.permutation(n)[:TRIED]
    changed = np.stack([picture] * len(cells))
    index = np.arange(side) * grid // side
    for shown, cell in zip(changed, cells, strict=True):
        inside = np.ix_(index == cell // grid, index == cell % grid)
        shown[inside] = noise.integers(0, 256, shown[inside].shape, dtype=np.uint8)
    before, *after = _entering(vlm, [picture, *changed])
    most = [int((tokens - before).norm(dim=-1).argmax()) for tokens in after]
    share = np.mean([token == cell for token, cell in zip(most, cells, strict=True)])
    if share < FOUND:
        raise NoGridError(
            f"{model} does not lay its {n} image tokens out as a grid of {grid} x {grid}, row by row: only "
            f"{share:.0%} of the cells of a picture change their own token most"
        )
    return grid


def _entering(vlm: VLM, pictures: list[np.ndarray]) -> list[torch.Tensor]:
    """What enters layer 0 at the image tokens of each picture."""
    inputs = vlm.prepare([QUESTIONS[0]] * len(pictures), [Image.fromarray(p) for p in pictures])
    image, stream = vlm.pixel_tokens(inputs), vlm.prefix(inputs, 0)  # row ends belong to no cell
    assert image is not None
    return [tokens[mask] for tokens, mask in zip(stream, image, strict=True)]


def cells_showing(pixels: Bool[np.ndarray, "side side"], grid: int) -> Bool[np.ndarray, "cells"]:
    """Cells of a `grid` x `grid` square, row by row, that hold any of these pixels."""
    index = np.arange(len(pixels)) * grid // len(pixels)
    cells = np.zeros((grid, grid), dtype=bool)
    np.logical_or.at(cells, (index[:, None], index[None, :]), pixels)
    return cells.ravel()


def with_neighbours(cells: Bool[np.ndarray, "cells"]) -> Bool[np.ndarray, "cells"]:
    """These cells of a square grid and all that touch one, by a side or a corner."""
    grid = math.isqrt(len(cells))
    return binary_dilation(cells.reshape(grid, grid), np.ones((3, 3), dtype=bool)).ravel()
