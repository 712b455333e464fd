"""Files that survive a kill: a journal of whole lines, a lock that ends with its process."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

SEAL = "sealed"


class StoreError(ValueError):
    """A store that cannot be used as it is; the message says what to do."""


def locked(folder: Path) -> int:
    """Hold the folder's lock until the returned file is closed or the process ends.

    Raises StoreError when it is held already.
    """
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise StoreError(
            f"{folder} is open already: wait for that process to end, or close the store"
        ) from None
    return file


class Journal:
    """Append-only JSON lines, with seals between them.

    A line that was added outlives its process. One before a seal also outlives its machine: a seal is written
    by whoever has seen to it that what the lines speak of is on the disk.
    """

    def __init__(self, path: Path) -> None:
        """Read the whole lines there are, none when the file is missing.

        What a crash left of lines after the last seal is cut off. Raises StoreError when one before it is
        damaged.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.lines: list[Any] = []
        self.sealed = 0  # how many of the lines come before the last seal
        self._ends = [0]  # where each line ends in the file
        content = path.read_bytes()
        last_seal, position = content.rfind(f'\n"{SEAL}"\n'.encode()), 0
        for raw in content.splitlines(keepends=True):
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if line is None:
                if position < last_seal:
                    os.close(self._file)
                    raise StoreError(f"{path} is damaged: delete {path.parent} and run again")
                break
            position += len(raw)
            if line == SEAL:
                self.sealed, self._ends[-1] = len(self.lines), position
            else:
                self.lines.append(line)
                self._ends.append(position)
        os.ftruncate(self._file, position)

    def add(self, line: Any) -> None:
        """Append a line."""
        self._ends.append(self._ends[-1] + self._write(line))
        self.lines.append(line)

    def seal(self) -> None:
        """Seal all lines, and wait until the disk has them."""
        self._ends[-1] += self._write(SEAL)
        flush(self._file)
        self.sealed = len(self.lines)

    def _write(self, line: Any) -> int:
        raw = (json.dumps(line) + "\n").encode()
        try:
            write_at(raw, self._file)
        except OSError:  # a full disk: half a line must not spoil the next
            os.ftruncate(self._file, self._ends[-1])
            raise
        return len(raw)

    def cut(self, n: int) -> None:
        """Keep the first `n` lines only."""
        os.ftruncate(self._file, self._ends[n])
        del self.lines[n:], self._ends[n + 1 :]
        self.sealed = min(self.sealed, n)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def write_at(data: Any, file: int, offset: int | None = None) -> None:
    """Write all bytes of a buffer, at the end of the file without an offset."""
    left = memoryview(data).cast("B")
    while left:
        n = os.write(file, left) if offset is None else os.pwrite(file, left, offset)
        left = left[n:]
        offset = None if offset is None else offset + n


def flush(file: int) -> None:
    """Wait until the disk has what was written to the file."""
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync
