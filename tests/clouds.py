"""Random points for the tests of the geometry, and what every measure must say of a bad input."""

import torch
from torch import Tensor

CLEAR = (
    "differ",
    "neighbours need",
    "no direction",
    "NaN",
    "does not vary",
    "mutual",
    "at least",
    "equally far",
)


def cloud(seed: int, n: int = 40, d: int = 5, layers: int = 1) -> Tensor:
    """Normal points: [layers, n, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, n, d, generator=generator, dtype=torch.float64)


def related(seed: int, n: int = 40, d: int = 5, layers: int = 1) -> tuple[Tensor, Tensor]:
    """Two representations of the same items, alike but for noise."""
    x = cloud(seed, n, d, layers)
    return x, x.flip(0) + 0.5 * cloud(seed + 1, n, d, layers)


def hard(name: str, n: int = 240, d: int = 96) -> Tensor:
    """Points whose neighbours are lost when distances are rounded, in the precision states have."""
    x, side = cloud(9, n, d)[0], torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)[:, None]
    if name == "offset":
        return (x + 1e4).float()
    if name == "huge dimension":
        return (x * torch.tensor([1e4] + [1.0] * (d - 1))).float()
    if name == "half precision":
        return (side + 0.1 * x).half()
    return side + float(name) * x if float(name) < 1e-3 else (side + float(name) * x).float()


HARD = ("0.1", "1e-3", "1e-7", "offset", "huge dimension", "half precision")  # numbers: width of two clusters


def rotation(seed: int, d: int = 5) -> Tensor:
    return torch.linalg.qr(cloud(seed, d, d)[0]).Q


def unit(x: Tensor) -> Tensor:
    """Standardised features of unit length, written out once more."""
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return x / x.norm(dim=1, keepdim=True)


def is_clear(error: ValueError) -> bool:
    return any(word in str(error) for word in CLEAR)
