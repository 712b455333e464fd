"""Where things are, found from the package, never from the working directory."""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlalign_utils"
NOTEBOOK = r"^[0-9][0-9]_[a-z0-9_]+$"  # what a notebook may be named


def results_root() -> Path:
    """Folder that holds `<arch>/<notebook>.json`; VLALIGN_RESULTS moves it for a run elsewhere."""
    return Path(os.environ.get("VLALIGN_RESULTS") or ROOT / "book" / "results")


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
