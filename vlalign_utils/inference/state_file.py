"""Shape and dtype of a store's states, and a mapped file to read them into."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vlalign_utils.inference.shards import StoreError

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Layout:
    """Groups, layers, width and dtype, which all batches of a store have in common."""

    groups: tuple[str, ...]
    layers: int
    d: int
    dtype: str

    @staticmethod
    def of(states: Mapping[str, Float[Tensor, "layers rows d"]]) -> "Layout":
        """Layout of a batch. Raises StoreError unless there are groups, all alike, of a dtype in DTYPES."""
        looks = {(value.shape, str(value.dtype).removeprefix("torch.")) for value in states.values()}
        if len(looks) != 1:
            raise StoreError(
                f"states have {len(looks)} different shapes and dtypes, expected one for all groups"
            )
        ((layers, _, d), dtype) = looks.pop()
        if dtype not in DTYPES:
            raise StoreError(f"states are {dtype}, expected one of {', '.join(DTYPES)}")
        return Layout(tuple(sorted(states)), layers, d, dtype)

    def nbytes(self, items: int) -> int:
        """Bytes of the states of so many items."""
        return len(self.groups) * self.layers * items * self.d * getattr(torch, self.dtype).itemsize


def mapped(folder: Path, layout: Layout, items: int) -> dict[str, Float[Tensor, "layers items d"]]:
    """Tensor for every group, in one memory-mapped file in `folder` that has no name and ends with them.

    States so need not fit into memory. Raises StoreError when the disk has no room for them.
    """
    size = layout.nbytes(items)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Taken now: on a full disk a later write through the map would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.truncate(file.fileno(), size)
            memory = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise StoreError(
            f"{folder} has no room to read its {size / 1e9:.1f} GB of states ({error.strerror}): free some"
        ) from error
    whole = torch.frombuffer(memory, dtype=getattr(torch, layout.dtype))
    parts = whole.view(len(layout.groups), layout.layers, items, layout.d)
    return {group: parts[g] for g, group in enumerate(layout.groups)}
