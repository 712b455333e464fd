"""Every results table as a CSV file in the built pages, and the page that lists them."""

import re
from pathlib import Path

import pandas as pd

from vlalign_utils.book import toc
from vlalign_utils.book.pages.markdown import table, text
from vlalign_utils.evidence.results import Results, ResultsError, read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import COMPARISON, Registry

VALUES = ["measured", "value", "low", "high", "n", "chance"]


def save(frame: pd.DataFrame, folder: Path, name: str, shown: str) -> str:
    """Write a table to `data/<name>.csv` in `folder`, and return a link that downloads it, as Markdown.

    `name` is reduced to lower-case words. Raises ResultsError when another table took the same file.
    """
    file = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") + ".csv"
    path = folder / "data" / file
    if path.exists():
        raise ResultsError(f"two tables would be written to {file}; rename '{shown}'")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))
    # A role's title has no escapes for these.
    title = " ".join(re.sub(r"[`<>|\\]", "", shown).split()) or file
    return f"{{download}}`{title} </{toc.GENERATED}/data/{file}>`"


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `data.md` into `folder`, and beside it a CSV file of every table of every chapter."""
    lines = [
        "# Data",
        """Every table and every number of every chapter, as CSV files. A chapter's *values* are the numbers
that it closes with, each with its 95 % interval, N and chance level; [](claims.md) has the verdicts.""",
    ]
    for arch in entries.architectures.values():
        lines += [f"## {text(arch.title)}", _chapters(arch.name, arch.notebooks, folder, root)]
    lines += ["## Across architectures", _chapters(COMPARISON, [entries.comparison], folder, root)]
    write_atomic(folder / "data.md", "\n\n".join(lines) + "\n")


def _chapters(arch: str, notebooks: list[str], folder: Path, root: Path) -> str:
    rows = []
    for notebook in notebooks:
        results = read(root / f"{toc.chapter(arch, notebook)}.json")
        frames = {"values": _values(results), **{name: results.frame(name) for name in results.tables}}
        links = [save(frame, folder, f"{arch} {notebook} {name}", name) for name, frame in frames.items()]
        rows.append([f"[](/{toc.chapter(arch, notebook)}.ipynb)", " · ".join(links)])
    return table(("chapter", "tables"), "ll", rows)


def _values(results: Results) -> pd.DataFrame:
    rows = [{"measured": name, **estimate.model_dump()} for name, estimate in results.values.items()]
    return pd.DataFrame(rows, columns=VALUES)
