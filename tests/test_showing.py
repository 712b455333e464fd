from dataclasses import replace

import numpy as np
import pytest
import torch

from vlalign_utils.data import concept_items
from vlalign_utils.data.signs import render_sign
from vlalign_utils.groups import Tokens
from vlalign_utils.showing import showing


def tokens(image: torch.Tensor, rows: list[int]) -> Tokens:
    nothing = torch.zeros_like(image)
    return Tokens(nothing.long(), ~nothing, image, nothing, rows)


def test_the_tokens_of_a_thing_are_those_of_its_quadrant():
    items = concept_items("position", 12, 0)
    image = torch.zeros(12, 40, dtype=torch.bool)
    image[:, 3:39] = True
    mask = showing(items)(tokens(image, list(range(11, -1, -1))))
    for i, row in enumerate(range(11, -1, -1)):
        thing = items[row].scene.things[0]
        grid = mask[i, 3:39].reshape(6, 6)
        half = grid[:3] if thing.row == "top" else grid[3:]
        own = half[:, :3] if thing.column == "left" else half[:, 3:]
        assert own.all()
        assert mask[i].sum() == 9


@pytest.mark.parametrize("side", [6, 12])
def test_the_tokens_of_a_word_hold_every_pixel_that_its_ink_changes(side):
    items = concept_items("word", 26, 0)
    image = torch.ones(26, side * side, dtype=torch.bool)
    mask = showing(items)(tokens(image, list(range(26))))
    for item, own in zip(items, mask, strict=True):
        inks = [render_sign(replace(item.scene, ink=ink)).astype(int) for ink in ("green", "pink")]
        written = np.abs(inks[0] - inks[1]).sum(-1) > 0
        cells = written.reshape(side, 48 // side, side, 48 // side).any((1, 3)).flatten()
        assert not (cells & ~own.numpy()).any()
        assert own.sum() < side * side


def test_tokens_that_are_no_square_are_refused():
    image = torch.ones(1, 37, dtype=torch.bool)
    with pytest.raises(ValueError, match="item 0 has 37 image tokens"):
        showing(concept_items("colour", 1, 0))(tokens(image, [0]))
