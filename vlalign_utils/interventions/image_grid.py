"""Find which image tokens show which part of an image: squares of tokens, whole or in tiles, or none."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from scipy.ndimage import binary_dilation

from vlalign_utils.driver.vlm import QUESTIONS, VLM
from vlalign_utils.evidence.intervals import rng

TRIED = 36  # cells of a grid, at most
FOUND = 0.9  # of them must change their own token most
TILES = 8  # a side, at most
BATCH = 8  # images at a time: each may become many tiles

# Row by row, the place of each cell's token among an item's image tokens.
Grid = Int[np.ndarray, "_ _"]


class NoGridError(ValueError):
    """The image tokens of a model form no square grids; the message is the reason that a chapter prints."""


def image_grids(vlm: VLM, side: int) -> list[Grid]:
    """Find the grids of tokens that an image of `side` x `side` pixels becomes; together they hold each once.

    One grid; or the whole image and its tiles, of which the tiles make one grid. The layout is found by
    trying: other noise in one cell of the image must change the token of that cell most of its grid. Raises
    NoGridError, saying what was seen, for a model whose image tokens are laid out otherwise.
    """
    found = vlm.capabilities().image_positions
    if not found.works:
        raise NoGridError(f"{type(vlm.model).__name__} does not allow image_positions: {found.detail}")
    model, noise = type(vlm.model).__name__, rng(0, "image grid")
    image = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
    (before,) = _entering(vlm, [image])
    n, best = len(before), 0.0
    layouts = [grids for grids in _layouts(n) if max(map(len, grids)) <= side]
    if not layouts:
        raise NoGridError(f"{model} makes {n} tokens of an image: they are no square grid, nor tiles of one")
    for grids in layouts:
        share = min(_share_found(vlm, image, grid, noise) for grid in grids)
        if share >= FOUND:
            return grids
        best = max(best, share)
    raise NoGridError(
        f"{model} does not lay its {n} image tokens out as a square grid, row by row, or as tiles of one: "
        f"only {best:.0%} of the cells of an image change their own token most"
    )


def _layouts(n: int) -> Iterator[list[Grid]]:
    """Yield the layouts of n tokens: tiles x tiles squares, and perhaps one of the whole image."""
    for tiles in range(1, TILES + 1):
        for whole in (0, 1):
            side = math.isqrt(n // (tiles**2 + whole))
            if side < 2 or side**2 * (tiles**2 + whole) != n:
                continue
            places = np.arange((tiles * side) ** 2)
            apart = places.reshape(tiles, tiles, side, side).swapaxes(1, 2).reshape((tiles * side,) * 2)
            if not whole:
                yield [apart]
                continue
            small = np.arange(side**2).reshape(side, side)
            joined = places.reshape((tiles * side,) * 2)  # row by row through all tiles
            for fine in [apart] if tiles == 1 else [apart, joined]:
                yield [small, fine + small.size]
                if tiles > 1:
                    yield [fine, small + fine.size]


def _share_found(vlm: VLM, image: np.ndarray, grid: Grid, noise: np.random.Generator) -> float:
    """Share of the cells tried whose token changes most of the grid when the cell does."""
    side, index = len(grid), np.arange(len(image)) * len(grid) // len(image)
    cells = noise.permutation(grid.size)[:TRIED]
    changed = np.stack([image] * len(cells))
    for shown, cell in zip(changed, cells, strict=True):
        inside = np.ix_(index == cell // side, index == cell % side)
        shown[inside] = noise.integers(0, 256, shown[inside].shape, dtype=np.uint8)
    before, *after = (tokens[grid.ravel()] for tokens in _entering(vlm, [image, *changed]))
    most = [int((tokens - before).norm(dim=-1).argmax()) for tokens in after]
    return float(np.mean([token == cell for token, cell in zip(most, cells, strict=True)]))


def _entering(vlm: VLM, images: list[np.ndarray]) -> list[torch.Tensor]:
    """Return what enters layer 0 at the image tokens of each image."""
    entering = []
    for start in range(0, len(images), BATCH):
        some = [Image.fromarray(image) for image in images[start : start + BATCH]]
        inputs = vlm.prepare([QUESTIONS[0]] * len(some), some)
        mask, stream = vlm.pixel_tokens(inputs), vlm.prefix(inputs, 0)  # row ends belong to no cell
        assert mask is not None
        entering += [tokens[shown] for tokens, shown in zip(stream, mask, strict=True)]
    return entering


def tokens_showing(
    pixels: Bool[np.ndarray, "side side"], grids: Sequence[Grid]
) -> Bool[np.ndarray, " tokens"]:
    """Select the image tokens whose cell, in any of the grids, holds any of these pixels."""
    found = np.zeros(sum(grid.size for grid in grids), dtype=bool)
    for grid in grids:
        index = np.arange(len(pixels)) * len(grid) // len(pixels)
        cells = np.zeros(grid.shape, dtype=bool)
        np.logical_or.at(cells, (index[:, None], index[None, :]), pixels)
        found[grid] = cells
    return found


def with_neighbours(
    tokens: Bool[np.ndarray, " tokens"], grids: Sequence[Grid]
) -> Bool[np.ndarray, " tokens"]:
    """Add to these tokens all whose cell touches one of theirs in its grid, by a side or a corner."""
    found = np.zeros_like(tokens)
    for grid in grids:
        found[grid] = binary_dilation(tokens[grid], np.ones((3, 3), dtype=bool))
    return found
