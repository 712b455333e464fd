"""Folder of shards: one safetensors file per batch, checksummed, written whole or not at all.

A shard holds tensors and a JSON value, `about`, in its metadata, beside the SHA-256 of both. What a kill, a
crash of the machine or a failing disk damages is found on reading and costs that batch alone.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from vlalign_utils.paths import atomic_file, sweep

LOG = logging.getLogger("vlalign")
SUFFIX = ".safetensors"


class StoreError(ValueError):
    """A store that cannot be used as it is; the message says what to do."""


class DamagedError(ValueError):
    """A file that does not hold what was written to it."""


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of tensors, with their names, dtypes and shapes, and of a text."""
    total = hashlib.sha256(f"{len(text)} {text}".encode())
    for name in sorted(tensors):
        value = tensors[name].detach()
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_shard(path: Path, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write tensors and a JSON value to a file. Raises WriteError where the disk is full or read-only."""
    apart, metadata = _prepared(tensors, about)
    with atomic_file(path) as partial:
        save_file(apart, partial, metadata)


def read_shard(path: Path, device: str = "cpu", check: bool = True) -> tuple[dict[str, Tensor], Any]:
    """Tensors and JSON value of a shard, compared with its checksum if `check`.

    Raises DamagedError when the file is not what was written, and FileNotFoundError.
    """
    try:
        with safe_open(path, "pt", device=device) as file:
            metadata = file.metadata()
            # Copied: some kernels give other last digits where a tensor begins anywhere in memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = metadata["about"]
        if check and metadata["sha256"] != digest(tensors, text):
            raise DamagedError(f"{path} is damaged: its content does not fit its checksum")
        return tensors, json.loads(text)
    except DamagedError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is damaged: {type(error).__name__}, {error}") from error


class Shards:
    """Shards of one folder, by name; a damaged one counts as never written."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, made if need be. Raises StoreError where it cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error
        sweep(folder)
        self.folder = folder
        self.size = sum(self.path(name).stat().st_size for name in self.names())  # bytes
        self._checked: set[str] = set()  # by this process, which compares every checksum once

    def path(self, name: str) -> Path:
        """File of a shard."""
        return self.folder / f"{name}{SUFFIX}"

    def names(self) -> list[str]:
        """Names of the shards that are there, sorted."""
        return sorted(path.stem for path in self.folder.glob(f"[!.]*{SUFFIX}"))

    def read(self, name: str, device: str = "cpu") -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and JSON value of a shard; None where there is none, or a damaged one, which is dropped."""
        try:
            found = read_shard(self.path(name), device, check=name not in self._checked)
        except FileNotFoundError:
            return None
        except DamagedError:
            self.drop(name)
            return None
        self._checked.add(name)
        return found

    def write(self, name: str, tensors: Mapping[str, Tensor], about: Any, room: int | None = None) -> int:
        """Write a new shard and return its bytes; 0, and nothing is written, when they are more than `room`.

        Raises StoreError where the disk is full or the folder cannot be written to.
        """
        data = save(*_prepared(tensors, about))
        if room is not None and len(data) > room:
            return 0
        try:
            with atomic_file(self.path(name)) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise StoreError(str(error)) from error
        self.size += len(data)
        return len(data)

    def drop(self, name: str) -> None:
        """Delete a damaged shard, with one line of log. Raises StoreError where nothing can be deleted."""
        path = self.path(name)
        try:
            self.size -= path.stat().st_size
            path.unlink()
        except OSError as error:
            raise StoreError(
                f"{path} is damaged and cannot be deleted ({error.strerror}): choose another folder"
            ) from error
        LOG.warning("%s is damaged: its batch is recorded again", path)


def _prepared(tensors: Mapping[str, Tensor], about: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, as the format asks, and the metadata of their shard."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(storage.data_ptr())
        apart[name] = value
    text = json.dumps(about)
    return apart, {"about": text, "sha256": digest(apart, text)}
