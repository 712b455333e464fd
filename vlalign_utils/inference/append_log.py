"""Append-only JSON lines, each with a checksum: a kill or a failing disk costs the damaged line alone."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlalign_utils.paths import WriteError, write_atomic

LOG = logging.getLogger("vlalign")


class AppendLog:
    """JSON values in one file, in the order added; processes may add to the same one."""

    def __init__(self, path: Path) -> None:
        """Read the values there are, none when the file is missing.

        A damaged line, or the half of one that a kill left, is dropped with one line of log.
        """
        self.path = path
        self.lines: list[Any] = []
        if not path.is_file():
            return
        with self._locked():
            sound = []
            for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), 1):
                try:
                    self.lines.append(_parsed(raw))
                    sound.append(raw)
                except (ValueError, KeyError, TypeError):
                    LOG.warning("%s, line %d is damaged: what it held is computed again", path, number)
            if b"".join(sound) != path.read_bytes():
                write_atomic(path, b"".join(sound))

    def add(self, line: Any) -> None:
        """Append a JSON value; a kill from here on spares it.

        Raises TypeError for what JSON cannot hold, and WriteError when the disk is full or read-only; nothing
        is appended then.
        """
        text = json.dumps(line)
        raw = json.dumps({"sha256": _sum(text), "line": text}).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(), self.path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    if file.write(raw) != len(raw):
                        raise OSError(28, os.strerror(28))  # the disk took the beginning of the line only
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as error:
            raise WriteError(
                f"{self.path} cannot be written ({error.strerror}): free some space, or choose another folder"
            ) from error
        self.lines.append(line)

    def _locked(self) -> FileLock:
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))


def _parsed(raw: bytes) -> Any:
    outer = json.loads(raw)
    if not raw.endswith(b"\n") or outer["sha256"] != _sum(outer["line"]):
        raise ValueError("damaged")
    return json.loads(outer["line"])


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
