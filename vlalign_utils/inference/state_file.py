"""One raw file of states [groups, layers, items, d], written in place and read by memory mapping."""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlalign_utils.inference.append_log import flush, write_at

# Numbers are kept as bits, little-endian: numpy has no bfloat16.
BITS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<i4"),
    "float16": np.dtype("<i2"),
    "bfloat16": np.dtype("<i2"),
}


@dataclass(frozen=True)
class Layout:
    """Shape and dtype of a file of states."""

    groups: tuple[str, ...]
    layers: int
    items: int
    d: int
    dtype: str

    def __post_init__(self) -> None:
        """Raises ValueError for a dtype that the file cannot hold."""
        if self.dtype not in BITS:
            raise ValueError(f"states are {self.dtype}, expected one of {', '.join(BITS)}")

    @staticmethod
    def of(states: Mapping[str, Tensor], items: int) -> "Layout":
        """Layout of a file for `items` items like these states [layers, rows, d].

        Raises ValueError unless there are some and all are alike.
        """
        looks = {(value.shape, str(value.dtype).removeprefix("torch.")) for value in states.values()}
        if len(looks) != 1:
            raise ValueError(
                f"states have {len(looks)} different shapes and dtypes, expected one for all groups"
            )
        ((layers, _, d), dtype) = looks.pop()
        return Layout(tuple(sorted(states)), layers, items, d, dtype)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Groups, layers, items and d."""
        return len(self.groups), self.layers, self.items, self.d

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return prod(self.shape) * BITS[self.dtype].itemsize


class StateFile:
    """Open file of states; what no batch has written reads as zeros."""

    def __init__(self, path: Path) -> None:
        """Open the file, empty when it is new."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        """Close the file; what was mapped stays readable."""
        os.close(self._file)

    def clear(self, layout: Layout) -> None:
        """Make the file as large as its layout, and all of it zeros."""
        os.ftruncate(self._file, 0)
        os.ftruncate(self._file, layout.nbytes)

    def write(
        self, layout: Layout, rows: Sequence[int], states: Mapping[str, Float[Tensor, "layers rows d"]]
    ) -> dict[str, int]:
        """Write one batch and return a checksum per group, of its rows in the order given."""
        breaks: Any = np.flatnonzero(np.diff(np.asarray(rows)) != 1) + 1
        stretches = list(pairwise([0, *breaks.tolist(), len(rows)]))  # rows that are neighbours in the file
        sums = dict.fromkeys(layout.groups, 0)
        for g, group in enumerate(layout.groups):
            for layer, value in enumerate(states[group]):
                lines = _bits(value)
                sums[group] = zlib.crc32(lines.data, sums[group])
                start = (g * layout.layers + layer) * layout.items
                for first, stop in stretches:
                    write_at(lines[first:stop], self._file, (start + rows[first]) * lines[0].nbytes)
        return sums

    def flush(self) -> None:
        """Wait until the disk has what was written."""
        flush(self._file)

    def map(self, layout: Layout) -> dict[str, Float[Tensor, "layers items d"]]:
        """Every group's states; changes to them stay in memory."""
        bits = np.memmap(self.path, dtype=BITS[layout.dtype], mode="c", shape=layout.shape)
        dtype = getattr(torch, layout.dtype)
        return {group: torch.from_numpy(bits[g]).view(dtype) for g, group in enumerate(layout.groups)}


def checksum(states: Float[Tensor, "layers items d"], rows: Sequence[int]) -> int:
    """Checksum of some items' states, in the order given."""
    total = 0
    for value in states:
        total = zlib.crc32(_bits(value[list(rows)]).data, total)
    return total


def _bits(states: Float[Tensor, "rows d"]) -> Int[np.ndarray, "rows d"]:
    wide = states.dtype == torch.float32
    return states.detach().cpu().contiguous().view(torch.int32 if wide else torch.int16).numpy()
