"""The list of laboratory models on the page that says what they are for."""

from pathlib import Path

from vlalign_utils.book import toc
from vlalign_utils.book.pages import scale
from vlalign_utils.book.pages.markdown import number, table, text
from vlalign_utils.evidence.findings import counted
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Registry

PAGE = "laboratory_models.md"


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `laboratory_models.md`, which the page on laboratory models includes."""
    rows = []
    for name in entries.originals():
        arch = entries.architecture(name)
        if not arch.laboratory:
            continue
        seeds = 1 + sum(other.repeats == name for other in entries.architectures.values())
        size = scale.of_folder(root / arch.model, arch.stages[-1])
        rows.append(
            [
                f"[{text(arch.title)}](/{toc.card(name)}.md)",
                text(arch.description),
                counted(seeds, "seed"),
                *(number(part) for part in (size.weights, size.layers, size.tokens)),
            ]
        )
    columns = ("model", "what it is", "seeds", "weights", "decoder layers", "vocabulary")
    write_atomic(folder / PAGE, table(columns, "lllrrr", rows))
