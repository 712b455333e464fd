"""The front page's picture and summary, made from the results of every chapter."""

from pathlib import Path

import pandas as pd

from vlalign_utils.book import toc
from vlalign_utils.book.pages import picture
from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.evidence.results import Results, read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture, Registry

HEADLINES = 3  # a notebook reports its most important values first
COLUMNS = ("chapter", "measured", "value and 95 % interval", "chance", "N")
PICTURE = "depth.svg"


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `picture.md` and `summary.md`, which the front page includes."""
    archs = [entries.architecture(name) for name in entries.originals()]
    read_off = {
        view: {arch.name: _curve(arch, view, root) for arch in archs if view.notebook in arch.notebooks}
        for view in picture.VIEWS
    }
    # Where images take no positions, there are no curves of image tokens.
    curves = {
        view: {name: rows for name, rows in by_name.items() if len(rows)}
        for view, by_name in read_off.items()
    }
    picture.draw(curves, folder / PICTURE)
    write_atomic(folder / "picture.md", _figure(curves))
    parts = []
    for arch in archs:
        rows = [row for notebook in arch.notebooks for row in _rows(arch.name, notebook, root)]
        parts += [f"### {text(arch.title)}", text(arch.description), table(COLUMNS, "lllrr", rows)]
    write_atomic(folder / "summary.md", "\n\n".join(parts) + "\n")


def _results(arch: str, notebook: str, root: Path) -> Results:
    return read(root / f"{toc.chapter(arch, notebook)}.json")


def _curve(arch: Architecture, view: picture.View, root: Path) -> pd.DataFrame:
    """The view's curve, empty when the table holds no such curve.

    Raises ResultsError naming the table when the chapter did not publish it.
    """
    rows = _results(arch.name, view.notebook, root).frame(view.table)
    return rows[rows.curve == view.curve.format(arch.stages[-1])].reset_index(drop=True)


def _figure(curves: dict[picture.View, dict[str, pd.DataFrame]]) -> str:
    return (
        f":::{{figure}} /{toc.GENERATED}/{PICTURE}\n:alt: {picture.alternative(curves)}\n\n"
        "Depth runs upwards, from the layer that pictures and words enter to the one that answers. Shaded: "
        "95 % intervals. The chapters give N, the controls and the nulls.\n:::\n"
    )


def _rows(arch: str, notebook: str, root: Path) -> list[list[str]]:
    values = list(_results(arch, notebook, root).values.items())[:HEADLINES]
    return [
        [
            "" if row else f"[](/{toc.chapter(arch, notebook)}.ipynb)",
            text(name),
            interval(estimate),
            "" if estimate.chance is None else f"{estimate.chance:.2f}",
            number(estimate.n),
        ]
        for row, (name, estimate) in enumerate(values)
    ]
