"""How far the weights of a GGUF file were rounded, as its own steps tell."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

FOUR_BITS = GGMLQuantizationType.Q4_1  # 16 values in even steps, from a least one: both for each block


class Rounding(NamedTuple):
    """Share of the weights that have four bits each, and the noise in them: root mean squares, a ratio."""

    share: float
    noise: float


def rounding(file: Path) -> Rounding:
    """Share of a GGUF file's weights with four bits (Q4_1), and their rounding error relative to them.

    Errors are taken to be spread evenly over a step: their mean square is step^2 / 12.
    """
    _, size = GGML_QUANT_SIZES[FOUR_BITS]
    weights = rounded = 0
    error = power = 0.0
    for tensor in GGUFReader(file).tensors:
        weights += int(tensor.n_elements)
        if tensor.tensor_type != FOUR_BITS:
            continue
        rounded += int(tensor.n_elements)
        steps = np.ascontiguousarray(tensor.data).reshape(-1, size)[:, :2].copy().view(np.float16)
        error += int(tensor.n_elements) * float((steps.astype(np.float64) ** 2).mean()) / 12
        power += float((dequantize(tensor.data, tensor.tensor_type).astype(np.float64) ** 2).sum())
    return Rounding(rounded / weights, (error / power) ** 0.5 if power else 0.0)
