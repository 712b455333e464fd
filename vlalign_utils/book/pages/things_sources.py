"""The page of sources of the real things: who drew and named them, and under which licences."""

from pathlib import Path

from vlalign_utils.paths import write_atomic

FILE = "zoo/things/ATTRIBUTION.md"


def write(folder: Path, root: Path) -> None:
    """Write `things_sources.md` into `folder`: the attributions that stand beside the drawings."""
    write_atomic(folder / "things_sources.md", (root / FILE).read_text(encoding="utf-8"))
