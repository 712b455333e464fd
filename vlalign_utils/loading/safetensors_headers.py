"""Read names, shapes and precisions of safetensors files without reading a weight."""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from huggingface_hub import get_safetensors_metadata, parse_local_safetensors_file_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import SafetensorsFileMetadata
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
        """True where the tensor holds plain real numbers, not quantised codes."""
        return self.dtype in ("F64", "F32", "F16", "BF16")

    def on_meta(self) -> Tensor:
        """A tensor of this shape and precision without storage."""
        return torch.empty(self.shape, dtype=_TYPES.get(self.dtype, torch.uint8), device="meta")


def read_headers(checkpoint: Checkpoint) -> dict[str, Header]:
    """Headers of every tensor that would be loaded, by name; from the hub only the headers are read.

    Raises ValueError when a file is missing, cut short or damaged in its header, or the index is damaged.
    """
    if checkpoint.folder is None:
        return _from_hub(checkpoint)
    return {
        name: Header(tuple(tensor.shape), tensor.dtype, file)
        for file in weight_files(checkpoint)
        for name, tensor in _in_file(checkpoint.folder / file).tensors.items()
    }


def weight_files(checkpoint: Checkpoint) -> list[str]:
    """Names of the safetensors files of a checkpoint on disk: one, or the shards that its index lists.

    Raises ValueError for an index that is damaged, or that lists a file which is not there.
    """
    folder = checkpoint.folder
    assert folder is not None
    if WEIGHTS in checkpoint.files:
        return [WEIGHTS]
    try:
        files = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        absent = [file for file in files if not (folder / file).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error}): download it again") from error
    if absent:
        raise ValueError(f"{checkpoint.name} lacks {absent[0]}, which its {INDEX} lists: download it again")
    return files


def _in_file(path: Path) -> SafetensorsFileMetadata:
    """Header of a file that is as long as it says."""
    try:
        found = parse_local_safetensors_file_metadata(path)
        held = path.stat().st_size - 8 - len(_header_bytes(path))
        end = max((tensor.data_offsets[1] for tensor in found.tensors.values()), default=0)
        sound = all(
            _fits(tensor.data_offsets, tensor.dtype, tensor.shape) for tensor in found.tensors.values()
        )
    except (SafetensorsParsingError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no safetensors file, or only the pointer to one: download it again"
        ) from error
    if not sound:
        raise ValueError(f"{path} has a damaged header: download it again")
    if held != end:
        raise ValueError(f"{path} holds {held} of {end} bytes of weights: download it again")
    return found


def _fits(offsets: tuple[int, int], dtype: str, shape: list[int]) -> bool:
    """Check that a tensor's bytes in the file are as many as its shape and precision, if known, take."""
    start, end = offsets
    return 0 <= start <= end and (dtype not in _TYPES or end - start == prod(shape) * _TYPES[dtype].itemsize)


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
        return stream.read(int.from_bytes(stream.read(8), "little"))


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
