"""The front page's sentences, figure and summary, made from the results of every chapter."""

from pathlib import Path

from vlalign_utils.book import toc
from vlalign_utils.book.pages import depth_figure, headline, scale, verdicts
from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.results import Results, read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Registry

HEADLINES = 3  # a notebook reports its most important values first
COLUMNS = ("chapter", "measured", "value and 95 % interval", "chance", "N")
FIGURE = "depth.svg"
Claims = dict[str, claim_rules.Claim]
Found = dict[str, verdicts.Verdicts]


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write what the front page includes: `headline.md`, `depth_figure.md`, `follows.md` and `summary.md`."""
    known = claim_rules.load(root / claim_rules.FILE)
    found = verdicts.collect(known, entries, root)
    write_atomic(folder / "headline.md", _headline(known, found, entries, root))
    write_atomic(folder / "follows.md", _follows(known, found, entries))
    archs = [entries.architecture(name) for name in entries.originals()]
    shown = [arch for arch in archs if depth_figure.NOTEBOOK in arch.notebooks]
    profiles = {arch.name: _results(arch.name, depth_figure.NOTEBOOK, root) for arch in shown}
    curves = {
        view: {name: found.frame(view.table) for name, found in profiles.items()}
        for view in depth_figure.VIEWS
    }
    titles = {arch.name: arch.title for arch in shown}
    front = [arch.name for arch in shown if not arch.laboratory]
    depth_figure.draw(curves, titles, front, folder / FIGURE)
    write_atomic(folder / "depth_figure.md", _figure(depth_figure.alternative(curves, titles)))
    parts = []
    for arch in archs:
        rows = [row for notebook in arch.notebooks for row in _rows(arch.name, notebook, root)]
        parts += [f"### {text(arch.title)}", text(arch.description), table(COLUMNS, "lllrr", rows)]
    write_atomic(folder / "summary.md", "\n\n".join(parts) + "\n")


def _results(arch: str, notebook: str, root: Path) -> Results:
    return read(root / f"{toc.chapter(arch, notebook)}.json")


def _headline(known: Claims, found: Found, entries: Registry, root: Path) -> str:
    """What was found in the first model: its phase, what is decided, what is not, how definitions differ."""
    arch = headline.first(entries)
    told = [*headline.decided(known, found, arch.name, entries), headline.tally(found, arch.name)]
    if depth_figure.NOTEBOOK in arch.notebooks:
        phase, differ = _results(arch.name, depth_figure.NOTEBOOK, root).findings[:2]
        told = [phase, *told, differ]
    lines = [f"**In {text(arch.title)}:**", "", *_listed([text(said) for said in told])]
    level = f"Intervals of claims are at {100 * claim_rules.level(len(known)):.2f} %, all others at 95 %."
    return "\n".join([*lines, f"{text(level)} {text(scale.about_all(entries, root))}"]) + "\n"


def _follows(known: Claims, found: Found, entries: Registry) -> str:
    """What follows for three kinds of readers, over all models."""
    tasks = headline.follows(known, found, entries)
    rows = [f"*To {task}:* {text(said)}" for task, said in tasks.items()]
    return "\n".join(["**What follows, over all models:**", "", *_listed(rows)]) + "\n" if rows else ""


def _listed(told: list[str]) -> list[str]:
    return [":::{div} findings", "", *(f"- {said}" for said in told), "", ":::", ""]


def _figure(alternative: str) -> str:
    return (
        f":::{{figure}} /{toc.GENERATED}/{FIGURE}\n:alt: {alternative}\n\n"
        "Six ways to ask where image and text meet, over the depth of each model: pretrained ones in front, "
        "with 95 % intervals, laboratory models thin behind them. Grey, dashed: the control of each curve "
        f"({depth_figure.CONTROLS}). [](/_generated/claims.md) says what follows from them.\n:::\n"
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
