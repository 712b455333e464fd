"""What verdicts and numbers say to someone who tunes, adapts or prunes: which layers?"""

from collections.abc import Sequence
from pathlib import Path

from vlalign_utils.book import toc
from vlalign_utils.book.pages import headline, verdicts
from vlalign_utils.book.pages.markdown import interval, table, text
from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.findings import joined
from vlalign_utils.evidence.results import Results, read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture, Registry

PAGE = "which_layers.md"
TUNING, COMPRESSION = "05_tuning", "08_compression"
WHERE = ("early", "middle", "late")
PLACES = {"left out": "nothing", "bypass from captions": "a bypass fitted on captions"}
TITLES = {"train": "Tune", "adapt": "Adapt", "compress": "Prune"}


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `which_layers.md`, which the page of the same name includes."""
    known = claim_rules.load(root / claim_rules.FILE)
    follows = headline.follows(known, verdicts.collect(known, entries, root), entries)
    lines = []
    for task, title in TITLES.items():
        notebook = COMPRESSION if task == "compress" else TUNING
        archs = [a for a in map(entries.architecture, entries.originals()) if notebook in a.notebooks]
        found = {arch.title: read(root / f"{toc.chapter(arch.name, notebook)}.json") for arch in archs}
        lines += [f"## {title}", text(follows.get(task, "No model was tested yet.")), _scope(archs, notebook)]
        if archs:
            lines.append({"train": _tuned, "adapt": _adapted, "compress": _pruned}[task](found))
    write_atomic(folder / PAGE, "\n\n".join(lines) + "\n")


def _scope(archs: Sequence[Architecture], notebook: str) -> str:
    """On which models a chapter ran, those of pretrained parts apart."""
    real, laboratory = (
        [f"[{text(a.title)}](/{toc.chapter(a.name, notebook)}.ipynb)" for a in archs if a.laboratory is small]
        for small in (False, True)
    )
    if not archs:
        return "*There is no table yet: the chapter ran on no model.*"
    if not real:
        guess = "of larger models it is a guess"
        return f"*The table is of laboratory models alone, {joined(laboratory)}: {guess}.*"
    beside = f", and of laboratory models: {joined(laboratory)}" if laboratory else ""
    return f"*The table is of {joined(real)}{beside}.*"


def _tuned(found: dict[str, Results]) -> str:
    """Gain and time of each strategy, as shares of full tuning's."""
    return _of_strategies(found, adapters=False)


def _adapted(found: dict[str, Results]) -> str:
    """The same of low-rank adapters."""
    return _of_strategies(found, adapters=True)


def _of_strategies(found: dict[str, Results], adapters: bool) -> str:
    every = dict.fromkeys(name for r in found.values() for name in r.frame("cost").strategy)
    names = [name for name in every if name != "full" and ("LoRA" in name) == adapters]
    kinds = {"gain": "gain, share of full tuning's", "time": "time, share of full tuning's"}
    columns = [f"{text(title)}: {words}" for title in found for words in kinds.values()]
    rows = [
        [name, *(_cell(r, f"{kind} of {name}, share of full") for r in found.values() for kind in kinds)]
        for name in names
    ]
    return _wide(("layers", *columns), rows)


def _pruned(found: dict[str, Results]) -> str:
    """What images lose more than captions, by depth, and what is left of answers when a quarter is gone."""
    rows = [
        [
            f"{where} submodules, {put} in their place: what images lose beyond captions",
            *(_cell(r, f"loss of images minus captions, {kind}, {where}") for r in found.values()),
        ]
        for kind, put in PLACES.items()
        for where in WHERE
    ]
    methods = ("bypass, captions", "ReplaceMe", "layers left out")
    rows += [
        [
            f"{method}, a quarter: score about {side}",
            *(_cell(r, f"score, {method}, a quarter left out, {side}") for r in found.values()),
        ]
        for method in methods
        for side in ("images", "captions")
    ]
    return _wide(("what", *map(text, found)), rows)


def _cell(results: Results, name: str) -> str:
    estimate = results.values.get(name)
    return "" if estimate is None else interval(estimate)


def _wide(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f":::{{div}} verdicts\n\n{table(columns, 'l' * len(columns), rows)}\n:::"
