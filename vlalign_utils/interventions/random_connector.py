"""A model whose connector was never trained: the null of every statement about where images enter.

What is still found behind random weights is the vision tower's own, or the layout of the images, and no sign
that image and text meet.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlalign_utils.driver.connector import connector
from vlalign_utils.driver.vlm import VLM


@contextmanager
def random_connector(vlm: VLM, seed: int = 0) -> Iterator[None]:
    """Within the block, the numbers of each of the connector's weights stand in a random order.

    Every tensor keeps its mean and variance, and so the scale of the image tokens; nothing of what was
    learned is left but that. Afterwards the weights are as they were.

    Raises ValueError where no module is named like a connector.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> from vlalign_utils.driver.connector import connector
        >>> vlm = load_vlm("zoo/llava")
        >>> weight = connector(vlm)[0]
        >>> before = weight.detach().clone()
        >>> with random_connector(vlm):
        ...     print(bool((weight == before).all()), bool((weight.sum() - before.sum()).abs() < 0.01))
        False True
        >>> bool((weight == before).all())
        True
    """
    bridge = connector(vlm)
    kept = [weight.detach().clone() for weight in bridge]
    draw = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight in bridge:
                order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, own in zip(bridge, kept, strict=True):
                weight.copy_(own)
