"""Folders of the cache that are built on first use, whole or not at all, and whose files are checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from vlalign_utils.paths import atomic_folder, sha256

CHECKSUMS = "checksums.json"  # SHA-256 of every file, by name


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """Folder that `build` fills: on first use, and again when a file is missing or no longer what it wrote.

    Args:
        folder: its place, named after everything that decides its content.
        build: writes files into the empty folder that it is given.

    Returns:
        The folder, complete: a kill leaves nothing, and of several processes one builds while others wait.

    Raises:
        WriteError: when it cannot be written.
    """
    if _intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _intact(folder):  # another process may have built it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_folder(folder) as partial:
                build(partial)
                sums = {path.name: sha256(path) for path in sorted(partial.iterdir())}
                (partial / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    return folder


def _intact(folder: Path) -> bool:
    """Check that a folder holds what was written into it."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_bytes())
        return bool(sums) and all(sha256(folder / name) == known for name, known in sums.items())
    except (OSError, ValueError, AttributeError):
        return False
