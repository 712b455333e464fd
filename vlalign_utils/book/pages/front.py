"""The front page's sentences, figure and summary, made from the results of every chapter."""

from pathlib import Path

import pandas as pd

from vlalign_utils.book import toc
from vlalign_utils.book.pages import depth_figure, headline, scale, verdicts
from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.results import Results, read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture, Registry

HEADLINES = 3  # a notebook reports its most important values first
COLUMNS = ("chapter", "measured", "value and 95 % interval", "chance", "N")
FIGURE = "depth.svg"


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `headline.md`, `depth_figure.md` and `summary.md`, which the front page includes."""
    write_atomic(folder / "headline.md", _headline(entries, root))
    archs = [entries.architecture(name) for name in entries.originals()]
    read_off = {
        view: {arch.name: _curve(arch, view, root) for arch in archs if view.notebook in arch.notebooks}
        for view in depth_figure.VIEWS
    }
    controls = {
        view: {arch.name: _curve(arch, view, root, True) for arch in archs if len(by.get(arch.name, ()))}
        for view, by in read_off.items()
    }
    # Where images take no positions, there are no curves of image tokens.
    curves = {
        view: {name: rows for name, rows in by_name.items() if len(rows)}
        for view, by_name in read_off.items()
    }
    depth_figure.draw(curves, controls, folder / FIGURE)
    write_atomic(folder / "depth_figure.md", _figure(curves, controls))
    parts = []
    for arch in archs:
        rows = [row for notebook in arch.notebooks for row in _rows(arch.name, notebook, root)]
        parts += [f"### {text(arch.title)}", text(arch.description), table(COLUMNS, "lllrr", rows)]
    write_atomic(folder / "summary.md", "\n\n".join(parts) + "\n")


def _results(arch: str, notebook: str, root: Path) -> Results:
    return read(root / f"{toc.chapter(arch, notebook)}.json")


def _headline(entries: Registry, root: Path) -> str:
    """Findings as a list of sentences, and what they were measured on."""
    known = claim_rules.load(root / claim_rules.FILE)
    told = headline.sentences(known, verdicts.collect(known, entries, root), entries)
    level = (
        f"Intervals in these sentences are at {100 * claim_rules.level(len(known)):.2f} %, the level of all"
    )
    lines = [":::{div} findings", "", *(f"- {text(said)}" for said in told), "", ":::", ""]
    lines += [f"{text(level)} [claims](/_generated/claims.md).", "", text(scale.about_all(entries, root))]
    return "\n".join(lines) + "\n"


def _curve(arch: Architecture, view: depth_figure.View, root: Path, control: bool = False) -> pd.DataFrame:
    """The view's curve or its control, empty when the table holds no such curve.

    Raises ResultsError naming the table when the chapter did not publish it.
    """
    rows = _results(arch.name, view.notebook, root).frame(view.table)
    name = (view.control if control else view.curve).format(arch.stages[-1])
    return rows[rows.curve == name].reset_index(drop=True)


def _figure(
    curves: dict[depth_figure.View, dict[str, pd.DataFrame]],
    controls: dict[depth_figure.View, dict[str, pd.DataFrame]],
) -> str:
    return (
        f":::{{figure}} /{toc.GENERATED}/{FIGURE}\n:alt: {depth_figure.alternative(curves, controls)}\n\n"
        "Depth runs upwards, from the layer that images and words enter to the one that answers. Shaded: "
        f"95 % intervals. Grey: {depth_figure.CONTROLS}. The chapters give N and methods.\n:::\n"
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
