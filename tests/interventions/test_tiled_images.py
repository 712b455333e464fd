"""Images that become tiles: the layout of their tokens is found by trying, on tiles of two processors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_own_processors import FAMILIES, write

from vlalign_utils import VLM, load_vlm
from vlalign_utils.data.minimal_pairs import minimal_pairs
from vlalign_utils.data.render import SIDE
from vlalign_utils.interventions.image_grid import NoGridError, image_grids, tokens_showing, with_neighbours
from vlalign_utils.interventions.object_ablation import ABLATED, object_ablation


def load(folder: Path, name: str) -> VLM:
    return load_vlm(write(folder / name, FAMILIES[name]), device="cpu")


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """2 x 2 tiles of 4 tokens, then 4 tokens of the whole image."""
    return load(tmp_path_factory.mktemp("tiled"), "smolvlm")


def moved(vlm: VLM, y: slice, x: slice) -> set[int]:
    """Image tokens that change with a part of the image."""
    grey = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)
    other = grey.copy()
    other[y, x] = 230
    one, two = (vlm.prepare(["what ?"], [Image.fromarray(image)]) for image in (grey, other))
    mask = vlm.image_mask(one)
    assert mask is not None
    apart = (vlm.prefix(one, 0) - vlm.prefix(two, 0))[mask].norm(dim=-1)
    return set(torch.nonzero(apart > 1e-5).flatten().tolist())


def test_a_tile_changes_with_its_part_of_the_image_alone(smolvlm: VLM) -> None:
    fine, whole = image_grids(smolvlm, SIDE)
    assert (fine.shape, whole.shape) == ((4, 4), (2, 2))
    assert sorted([*fine.flat, *whole.flat]) == list(range(20))
    for row in range(2):
        for column in range(2):
            y, x = (slice(24 * at + 8, 24 * at + 16) for at in (row, column))  # away from where tiles meet
            tile = fine[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert moved(smolvlm, y, x) == {*tile.flat, *whole.flat}


def test_tokens_of_a_thing_are_those_of_a_loop_over_pixels(smolvlm: VLM) -> None:
    grids = image_grids(smolvlm, SIDE)
    for pair in minimal_pairs(4):
        pixels = pair.covered >= 0.5
        expected = set()
        for y, x in zip(*pixels.nonzero(), strict=True):
            tile, inside = y // 24 * 2 + x // 24, y % 24 // 12 * 2 + x % 24 // 12
            expected |= {4 * tile + inside, 16 + tile}
        assert set(tokens_showing(pixels, grids).nonzero()[0]) == expected


def test_neighbours_are_found_across_tiles_and_in_each_grid() -> None:
    fine = np.array([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    whole = np.array([[16, 17], [18, 19]])
    pixels = np.zeros((8, 8), dtype=bool)
    pixels[2, 3] = True  # in the last cell of the first tile
    shown = tokens_showing(pixels, [fine, whole])
    assert set(shown.nonzero()[0]) == {3, 16}
    near = with_neighbours(shown, [fine, whole])
    assert set(near.nonzero()[0]) == {0, 1, 4, 2, 3, 6, 8, 9, 12, 16, 17, 18, 19}


@pytest.mark.slow
@pytest.mark.usefixtures("all_solved")
def test_a_thing_in_tiles_is_ablated(smolvlm: VLM) -> None:
    swept = object_ablation(smolvlm, minimal_pairs(3), batch_size=2)
    assert swept.prob.keys() == set(ABLATED)
    for name in ABLATED:
        assert np.isfinite(swept.prob[name]).all()
        assert (swept.drop(name) != 0).all()


@pytest.mark.slow
def test_the_whole_image_may_come_first(tmp_path: Path) -> None:
    """LLaVA-OneVision: the whole image, then one tile of it, whose row ends show nothing."""
    whole, tile = image_grids(load(tmp_path, "llava_onevision"), SIDE)
    assert whole.tolist() == [[0, 1], [2, 3]]
    assert tile.tolist() == [[4, 5], [6, 7]]


def test_cells_finer_than_a_pixel_are_no_grid(smolvlm: VLM) -> None:
    with pytest.raises(NoGridError, match="makes 20 tokens of an image: they are no square grid, nor tiles"):
        image_grids(smolvlm, 3)
