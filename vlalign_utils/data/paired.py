"""Pairs of any world: an image with what is said of it, and two images that differ in one thing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vlalign_utils.data.items import Item


@dataclass(frozen=True)
class Pair:
    """An image and texts that say what it shows, by wording: "en" is its caption.

    `ask` is the request to describe it, in the words of its world; `labels` say which value of a concept it
    has. `scene` is what the image was drawn from.
    """

    scene: Any
    image: Image.Image
    caption: dict[str, str]
    labels: dict[str, int]
    ask: str


@dataclass(frozen=True, eq=False)
class MinimalPair:
    """One question about two images that are alike but for one thing, on which its answer depends.

    `covered` is how far that thing shows at each pixel of the item's image, 0 to 1.
    """

    item: Item
    other: Item
    covered: Float[np.ndarray, "side side"]
