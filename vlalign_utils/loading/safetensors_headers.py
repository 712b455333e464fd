"""Read what safetensors files hold, names, shapes and precisions, without reading a weight."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from torch import Tensor

from vlalign_utils.loading.checkpoint import INDEX, UNREACHABLE, WEIGHTS, Checkpoint

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NO_HEADERS: tuple[type[Exception], ...] = (
    NotASafetensorsRepoError,
    SafetensorsParsingError,
    *UNREACHABLE,
)
_HASHED = 256 * 2**20  # bytes of weights up to which a fingerprint covers every one of them
_DESCRIPTIVE = {".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class Header:
    """Shape and precision of one tensor, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * _TYPES[self.dtype].itemsize if self.dtype in _TYPES else prod(self.shape)

    @property
    def is_real(self) -> bool:
        """Whether the tensor holds plain real numbers, not quantised codes."""
        return self.dtype in ("F64", "F32", "F16", "BF16")

    def on_meta(self) -> Tensor:
        """A tensor of this shape and precision without storage."""
        return torch.empty(self.shape, dtype=_TYPES.get(self.dtype, torch.uint8), device="meta")


def read_headers(checkpoint: Checkpoint) -> dict[str, Header]:
    """Headers of every tensor that would be loaded, by name; from the hub only the headers are read.

    Raises ValueError when a file is missing, cut short or not a safetensors file.
    """
    if checkpoint.folder is None:
        return _from_hub(checkpoint)
    folder = checkpoint.folder
    found: dict[str, Header] = {}
    for file in weight_files(checkpoint):
        if not (folder / file).is_file():
            raise ValueError(f"{checkpoint.name} lacks {file}, which its {INDEX} lists: download it again")
        tensors = json.loads(_header_bytes(folder / file))
        tensors.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        size = (folder / file).stat().st_size - 8 - len(_header_bytes(folder / file))
        if size != end:
            raise ValueError(f"{folder / file} holds {size} of {end} bytes of weights: download it again")
        found |= {n: Header(tuple(entry["shape"]), entry["dtype"], file) for n, entry in tensors.items()}
    return found


def weight_files(checkpoint: Checkpoint) -> list[str]:
    """Names of the safetensors files of a checkpoint on disk: one, or the shards that its index lists."""
    assert checkpoint.folder is not None
    if WEIGHTS in checkpoint.files:
        return [WEIGHTS]
    index: Mapping[str, Any] = json.loads((checkpoint.folder / INDEX).read_text(encoding="utf-8"))
    return sorted(set(index["weight_map"].values()))


def _from_hub(checkpoint: Checkpoint) -> dict[str, Header]:
    try:
        metadata = get_safetensors_metadata(checkpoint.name, revision=checkpoint.revision)
    except _NO_HEADERS as error:
        raise ValueError(
            f"{checkpoint.name}: the headers of its weights cannot be read from the hub "
            f"({type(error).__name__}), call again or see whether its files are whole"
        ) from None
    return {
        name: Header(tuple(tensor.shape), tensor.dtype, file)
        for file, content in metadata.files_metadata.items()
        for name, tensor in content.tensors.items()
    }


def _header_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size or stream.read(1) != b"{":
            raise ValueError(f"{path} is no safetensors file, or only the pointer to one: download it again")
        stream.seek(8)
        return stream.read(length)


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over the files of a folder, the same for every copy of it.

    Weights of 256 MiB and more, all files together, count with their headers and sizes only.
    """
    assert checkpoint.folder is not None
    weights = weight_files(checkpoint)
    described = [name for name in checkpoint.files if Path(name).suffix in _DESCRIPTIVE]
    whole = sum((checkpoint.folder / name).stat().st_size for name in weights) < _HASHED
    digest = hashlib.sha256()
    for name in sorted({*described, *weights}):
        path = checkpoint.folder / name
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        if name in weights and not whole:
            digest.update(_header_bytes(path))
        else:
            with path.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
    return digest.hexdigest()
