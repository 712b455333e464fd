"""Records of what was trained: one line of JSON each, found again by all that decides it.

Those of the registry's own parameters are committed in `book/studies/`. They do not depend on the code that
made them: a test trains one again. New ones gather in `.cache/studies/`, in a file named by the code.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlalign_utils.inference.append_log import AppendLog
from vlalign_utils.inference.store import canonical
from vlalign_utils.paths import PACKAGE, ROOT

ADAPTERS = "adapters"  # the study of adapters by depth, and the folder of its records
Record = dict[str, Any]


def committed(arch: str, study: str = "") -> Path:
    """The file of an architecture's records in the repository: of the study of tuning, or of another one."""
    return ROOT / "book" / "studies" / study / f"{arch}.jsonl"


def read(path: Path) -> list[Record]:
    """Committed records, none when the file is missing. Raises ValueError, naming a line that is none."""
    found: list[Record] = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is no record ({error}): restore the file from git, or delete the "
                "line to train that run again"
            ) from error
        found.append(record)
    return found


class Records:
    """Records of earlier training by key, and the append log that new ones go to."""

    def __init__(self, committed: Path | Sequence[Path], log: Path) -> None:
        """Read all; any may be missing. Raises ValueError for a damaged line of the committed ones."""
        self.log = AppendLog(log)
        files = [committed] if isinstance(committed, Path) else committed
        known = [record for path in files for record in read(path)]
        self.known: dict[str, Record] = {r["key"]: r for r in (*known, *self.log.lines)}
        self.used: dict[str, Record] = {}  # in the order asked for

    def get(self, about: Record, make: Callable[[], Record]) -> Record:
        """The record about something, made by calling `make` if it is not known."""
        key = hashlib.sha256(canonical(about).encode()).hexdigest()[:20]
        if key not in self.known:
            record = {"key": key, **about, **make()}
            self.log.add(record)
            self.known[key] = record
        self.used[key] = self.known[key]
        return self.used[key]


def records(arch: str, log: Path | None = None) -> Records:
    """Records of an architecture: the committed ones of every study, and those this very code has made here.

    `log` is where new ones go, and where others put theirs: by default a file named by the code.
    """
    return Records(
        [committed(arch), committed(arch, ADAPTERS)],
        log or ROOT / ".cache" / "studies" / f"{arch}-{_code()}.jsonl",
    )


@cache
def _code() -> str:
    """Digest of the package as it was when first asked for: later edits of its files change nothing."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
