"""Paths of the repository, found from the package, never from the working directory; atomic writes."""

import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlalign_utils"
NOTEBOOK = r"^[0-9][0-9]_[a-z0-9_]+$"  # what a notebook may be named
HOST = platform.node().replace(".", "-")
PARTIAL = re.compile(r"\.(?P<host>[^.]*)\.(?P<pid>\d+)\.[0-9a-f]{8}\.partial$")


def results_root() -> Path:
    """Folder that holds `<arch>/<notebook>.json`; VLALIGN_RESULTS moves it for a run elsewhere."""
    return Path(os.environ.get("VLALIGN_RESULTS") or ROOT / "book" / "results")


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits; a file that has not changed is read once in a process."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class WriteError(OSError):
    """A file or folder that cannot be written: the message names it, says why, and what to do."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Temporary file to write, which takes the place of `path` when the block ends; gone after an error.

    A reader, or a kill, never meets half of it, and two processes never share it. Raises WriteError for a
    full disk or a folder that cannot be written to.
    """
    with _partial(path) as partial:
        yield partial
        if path.exists():  # a crash of the machine must leave the old content or the new
            _flush(partial)
        os.replace(partial, path)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Temporary folder to fill, which is renamed to `folder` when the block ends; gone after an error.

    `folder` must not be there by then. Raises WriteError as `atomic_file` does.
    """
    sweep(folder.parent)
    with _partial(folder) as partial:
        partial.mkdir()
        yield partial
        os.rename(partial, folder)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file by `atomic_file`; text is UTF-8 with plain line ends."""
    sweep(path.parent)
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders of processes of this machine that were killed while writing."""
    for path in folder.glob(".*.partial"):
        found = PARTIAL.search(path.name)
        if found and found["host"] == HOST and not _alive(int(found["pid"])):
            _remove(path)


def write_together(texts: dict[Path, str]) -> None:
    """Write text files all or none: each is whole on the disk, under another name, before any is replaced.

    A kill between two replacements is the one way to leave an old file beside a new one.
    """
    with ExitStack() as written:
        for path, text in reversed(texts.items()):  # what was entered last takes its place first
            sweep(path.parent)
            written.enter_context(atomic_file(path)).write_bytes(text.encode())


def os_error(error: OSError) -> str:
    """The operating system's complaint in words: which file, and why."""
    return f"{error.filename}: {error.strerror or error}" if error.filename else str(error)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Name of its own beside `path`, known by its process, for as long as the block runs."""
    name = f".{path.name}.{HOST}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    partial = path.with_name(name)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except Exception as error:
        # The Rust code of safetensors and tokenizers has errors of its own for what the system says.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteError(
            f"{path} cannot be written ({reason}): free some space, or choose another folder"
        ) from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
