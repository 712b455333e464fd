"""The image tokens that show the thing a pair is about, where they lie on a square grid over the picture."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from vlalign_utils.data import Pair
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.render import SIDE
from vlalign_utils.data.signs import Sign
from vlalign_utils.groups import Group, Tokens


def showing(pairs: Sequence[Pair]) -> Group:
    """The group of image tokens whose centre lies in the region of the picture's first thing, or its word.

    Tokens are taken row by row from the top left. When used, raises ValueError where an item's image tokens
    are not a square number: they are then tiles, or hold separators, and where each lies is not known.
    """

    def group(tokens: Tokens) -> Bool[Tensor, "batch tokens"]:
        mask = torch.zeros_like(tokens.image)
        for i, row in enumerate(tokens.rows):
            places = tokens.image[i].nonzero().flatten()
            side = math.isqrt(len(places))
            if side**2 != len(places):
                raise ValueError(f"item {row} has {len(places)} image tokens: they are not one square grid")
            subject = pairs[row].scene
            shown = KINDS["signs" if isinstance(subject, Sign) else "scenes"].regions(subject)[0]
            centre = (torch.arange(side, device=places.device) + 0.5) * SIDE / side
            across = (centre >= shown.left) & (centre < shown.right)
            down = (centre >= shown.top) & (centre < shown.bottom)
            mask[i, places] = (down[:, None] & across).flatten()
        return mask

    return group
