"""ActivationStore: pooled states on disk, one append per finished batch, safe against kills and stale reads.

Every key has its own subfolder, named by the key's hash, with four plain files:

    key.json       the key, compared in full when the folder is opened
    states.bin     [groups, layers, items, d], written in place
    journal.jsonl  the layout, then one line per finished batch: its items and a checksum per group
    lock           held by the one process that has the store open

An append writes the states, then its line: a batch without a whole line was never there, so a kill costs one
batch at most. Every few seconds, and on closing, the store waits for the disk and seals the journal. After a
crash of the machine a batch behind the last seal counts if its checksum fits; one before it must always fit.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vlalign_utils.inference.append_log import Journal, StoreError, locked
from vlalign_utils.inference.state_file import Layout, StateFile, checksum
from vlalign_utils.paths import write_atomic

__all__ = ["ActivationStore", "StoreError", "canonical"]

SEAL_SECONDS = 5.0  # work that a crash of the machine, not of the process, may cost


class ActivationStore:
    """Pooled states of `items` items (default: `key["items"]`) under one key.

    Use it in a `with` block, or close it: until then no other process can open it.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any], items: int | None = None) -> None:
        """Open the key's subfolder, made if need be, and find the batches that were finished.

        Raises TypeError for a key that is not plain JSON, and StoreError when another process has it open or
        it does not hold what it should.
        """
        text = canonical(key)
        number = key.get("items") if items is None else items
        if not isinstance(number, int) or number < 1:
            raise StoreError(f"a store needs the number of its items, 1 or more, got {number!r}")
        self.items = number
        self.folder = Path(folder) / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished: set[int] = set()
        self._layout: Layout | None = None
        self._last_seal = time.monotonic()
        self._lock: int | None = locked(self.folder)
        try:
            self._check_key(text)
            self._journal = Journal(self.folder / "journal.jsonl")
            self._data = StateFile(self.folder / "states.bin")
            self._read_journal()
        except BaseException:
            self._layout = None  # what could not be read is not to be sealed
            self.close()
            raise

    def __enter__(self) -> "ActivationStore":
        """The store itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Wait for the disk and let other processes open the store; states that were read stay readable."""
        if self._lock is not None:
            try:
                if self._layout is not None:
                    self.seal()
            finally:
                for file in (getattr(self, "_journal", None), getattr(self, "_data", None)):
                    if file is not None:
                        file.close()
                os.close(self._lock)
                self._lock = None

    def append(self, rows: Sequence[int], states: Mapping[str, Float[Tensor, "layers rows d"]]) -> None:
        """Add one finished batch: `states[group][:, i]` is item `rows[i]`. A kill from here on spares it.

        Raises StoreError for items that are in the store or beyond it, for states of another layout than the
        first, for too little space, and when the store is closed.
        """
        placed = [int(row) for row in rows]
        layout = self._check_append(placed, states)
        self._journal.add({"rows": placed, "crc32": self._data.write(layout, placed, states)})
        self.finished.update(placed)
        if time.monotonic() - self._last_seal > SEAL_SECONDS:
            self.seal()

    def seal(self) -> None:
        """Wait until all that was appended is on the disk: a crash of the machine from here on spares it."""
        self._check_open()
        if self._journal.sealed < len(self._journal.lines):
            self._data.flush()
            self._journal.seal()
        self._last_seal = time.monotonic()

    def states(self) -> dict[str, Float[Tensor, "layers items d"]]:
        """All states in item order, memory-mapped: changes to them stay in memory.

        Every checksum is compared. Raises StoreError, naming the file, when one does not fit, or when an item
        is missing.
        """
        self._check_open()
        missing = self.items - len(self.finished)
        if missing or self._layout is None:
            raise StoreError(f"{self.folder} lacks {missing} of {self.items} items: finish the capture first")
        states = self._data.map(self._layout)
        for batch in self._journal.lines[1:]:
            if not _fits(batch, states):
                raise self._damaged(f"item {batch['rows'][0]} or its batch has changed")
        return states

    def _check_open(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.folder} is closed: open the store again")

    def _check_key(self, text: str) -> None:
        path = self.folder / "key.json"
        if not path.exists() and not (self.folder / "journal.jsonl").exists():
            write_atomic(path, text)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise StoreError(f"{path} is not the key that its folder is named by: delete {self.folder}")

    def _read_journal(self) -> None:
        if not self._journal.lines:
            return
        size = self._data.path.stat().st_size
        try:
            layout = self._journal.lines[0]["layout"]
            self._layout = Layout(**{**layout, "groups": tuple(layout["groups"])})
            rows = [row for batch in self._journal.lines[1:] for row in batch["rows"]]
            sound = len(set(rows)) == len(rows) and set(rows) <= set(range(self._layout.items))
            sound &= all(set(b["crc32"]) == set(self._layout.groups) for b in self._journal.lines[1:])
        except (KeyError, TypeError, ValueError):
            raise self._damaged("its journal makes no sense") from None
        if self._layout.items != self.items:
            raise StoreError(
                f"{self.folder} is for {self._layout.items} items, not {self.items}: change the key"
            )
        if not self._journal.sealed and size != self._layout.nbytes:  # the machine crashed as it was made
            self._journal.cut(0)
            self._layout = None
            return
        if not sound or size != self._layout.nbytes:
            raise self._damaged(f"it has {size} bytes, its journal asks for {self._layout.nbytes}")
        states = self._data.map(self._layout)
        for n, batch in enumerate(self._journal.lines):
            if n >= max(self._journal.sealed, 1) and not _fits(batch, states):
                self._journal.cut(n)  # the machine crashed before this batch was on the disk
                break
        self.finished = {row for batch in self._journal.lines[1:] for row in batch["rows"]}

    def _damaged(self, what: str) -> StoreError:
        path = self.folder / "states.bin"
        return StoreError(f"{path} is damaged ({what}): delete {self.folder} and capture again")

    def _check_append(self, rows: list[int], states: Mapping[str, Tensor]) -> Layout:
        self._check_open()
        repeated = sorted(self.finished & set(rows))
        if repeated:
            raise StoreError(f"item {repeated[0]} is in the store already: append what is not in .finished")
        if not rows or len(set(rows)) != len(rows) or min(rows) < 0 or max(rows) >= self.items:
            raise StoreError(f"rows are {rows}, expected different numbers from 0 to {self.items - 1}")
        try:
            layout = Layout.of(states, self.items)
        except ValueError as error:
            raise StoreError(str(error)) from None
        if any(value.shape[1] != len(rows) for value in states.values()):
            raise StoreError(f"there are {len(rows)} rows, expected states [layers, {len(rows)}, d]")
        if self._layout is None:
            self._create(layout)
        elif layout != self._layout:
            raise StoreError(f"states look like {layout}, those in the store like {self._layout}")
        return layout

    def _create(self, layout: Layout) -> None:
        free = shutil.disk_usage(self.folder).free
        if layout.nbytes > free:
            needs = f"needs {layout.nbytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there"
            raise StoreError(f"{self.folder} {needs}: free some, or keep the store elsewhere")
        self._data.clear(layout)
        self._journal.add({"layout": asdict(layout)})
        self._layout = layout


def _fits(batch: Mapping[str, Any], states: Mapping[str, Float[Tensor, "layers items d"]]) -> bool:
    """Whether a batch's states are those that its line in the journal speaks of."""
    return all(checksum(states[group], batch["rows"]) == total for group, total in batch["crc32"].items())


def canonical(key: Mapping[str, Any]) -> str:
    """A key as JSON text, the same for equal keys. Raises TypeError when it is not plain JSON."""
    try:
        return json.dumps(dict(key), sort_keys=True, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"a store's key must be plain JSON (text, numbers, lists, mappings): {error}"
        ) from None
