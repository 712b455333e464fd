"""ActivationStore: pooled states on disk, one shard per finished batch, safe against kills and stale reads.

Every key has its own subfolder, named by the key's hash:

    key.json             the key, to be read by people
    000000.safetensors   states of a batch [layers, items, d] by group, its items, and a checksum
    ...                  named by the first of its items
    lock                 held by the one process that has the store open

A batch without a whole shard was never there: a kill costs one batch at most. Opening compares every
checksum: a batch that a crash of the machine or the disk has damaged is dropped, and captured again.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from vlalign_utils.inference.shards import Shards, StoreError
from vlalign_utils.inference.state_file import Layout, mapped
from vlalign_utils.paths import write_atomic

__all__ = ["ActivationStore", "StoreError", "canonical"]


class ActivationStore:
    """Pooled states of `items` items (default: `key["items"]`) under one key.

    Use it in a `with` block, or close it: until then no other process can open it.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any], items: int | None = None) -> None:
        """Open the key's subfolder, made if need be, and find the batches that were finished.

        A damaged batch is dropped with one line of log, so that it is not among them. Raises TypeError for a
        key that is not plain JSON, and StoreError when another process has it open, when it is for another
        number of items, or when the folder cannot be written to.
        """
        text = canonical(key)
        number = key.get("items") if items is None else items
        if not isinstance(number, int) or number < 1:
            raise StoreError(f"a store needs the number of its items, 1 or more, got {number!r}")
        self.items = number
        self.folder = Path(folder) / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.finished: set[int] = set()
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._layout: Layout | None = None
        self._lock: FileLock | None = _locked(self.folder)
        try:
            self._shards = Shards(self.folder)
            self._write_key(text)
            self._find()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ActivationStore":
        """The store itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let other processes open the store; states that were read stay readable."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def append(self, rows: Sequence[int], states: Mapping[str, Float[Tensor, "layers rows d"]]) -> None:
        """Add one finished batch: `states[group][:, i]` is item `rows[i]`. A kill from here on spares it.

        Raises StoreError for items that are in the store or beyond it, for states of another layout than the
        first, for a full disk, and when the store is closed.
        """
        placed = [int(row) for row in rows]
        layout = self._check_append(placed, states)
        about = {"key": self._key, "items": self.items, "rows": placed}
        self._shards.write(_name(placed), states, about)
        self._layout = layout
        self.finished.update(placed)

    def states(self) -> dict[str, Float[Tensor, "layers items d"]]:
        """All states in item order, in a mapped file without a name: they need not fit into memory.

        Changes to them reach no store. Raises StoreError when an item is missing, when a batch was damaged
        since it was written, or when the disk has no room for a second copy.
        """
        self._check_open()
        missing = self.items - len(self.finished)
        if missing or self._layout is None:
            raise StoreError(f"{self.folder} lacks {missing} of {self.items} items: finish the capture first")
        whole = mapped(self.folder, self._layout, self.items)
        for name in self._shards.names():
            found = self._shards.read(name)
            if found is None:
                raise StoreError(f"{self._shards.path(name)} was damaged after it was written: call again")
            tensors, about = found
            for group, value in tensors.items():
                whole[group][:, about["rows"]] = value
        return whole

    def _check_open(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.folder} is closed: open the store again")

    def _write_key(self, text: str) -> None:
        """Write the key unless it is there; what decides is the key in every shard."""
        path = self.folder / "key.json"
        if not path.is_file() or path.read_bytes() != text.encode():
            try:
                write_atomic(path, text)
            except OSError as error:
                raise StoreError(str(error)) from error

    def _find(self) -> None:
        """Read every shard there is; drop those that are not what this store has written."""
        for name in self._shards.names():
            found = self._shards.read(name)
            if found is None:
                continue
            tensors, about = found
            if not isinstance(about, dict) or about.get("key") != self._key:
                self._shards.drop(name)
                continue
            if about["items"] != self.items:
                raise StoreError(
                    f"{self.folder} is for {about['items']} items, not {self.items}: change the key"
                )
            layout, rows = Layout.of(tensors), set(about["rows"])
            if name != _name(about["rows"]) or rows & self.finished or layout != (self._layout or layout):
                self._shards.drop(name)  # a copy under another name, or of another capture
                continue
            self._layout = layout
            self.finished |= rows

    def _check_append(self, rows: list[int], states: Mapping[str, Tensor]) -> Layout:
        self._check_open()
        repeated = sorted(self.finished & set(rows))
        if repeated:
            raise StoreError(f"item {repeated[0]} is in the store already: append what is not in .finished")
        if not rows or len(set(rows)) != len(rows) or min(rows) < 0 or max(rows) >= self.items:
            raise StoreError(f"rows are {rows}, expected different numbers from 0 to {self.items - 1}")
        layout = Layout.of(states)
        if any(value.shape[1] != len(rows) for value in states.values()):
            raise StoreError(f"there are {len(rows)} rows, expected states [layers, {len(rows)}, d]")
        if self._layout is None:
            needed, free = layout.nbytes(self.items), shutil.disk_usage(self.folder).free
            if needed > free:
                needs = f"needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there"
                raise StoreError(f"{self.folder} {needs}: free some, or keep the store elsewhere")
        elif layout != self._layout:
            raise StoreError(f"states look like {layout}, those in the store like {self._layout}")
        return layout


def _name(rows: Sequence[int]) -> str:
    return f"{rows[0]:08d}"


def _locked(folder: Path) -> FileLock:
    """Lock of a folder, held until it is released or the process ends. Raises StoreError when it is held."""
    lock = FileLock(folder / "lock", timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{folder} is open already: wait for that process to end, or close the store"
        ) from None
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
    return lock


def canonical(key: Mapping[str, Any]) -> str:
    """A key as JSON text, the same for equal keys. Raises TypeError when it is not plain JSON."""
    try:
        return json.dumps(dict(key), sort_keys=True, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"a store's key must be plain JSON (text, numbers, lists, mappings): {error}"
        ) from None
