"""A chapter's page: its title names the model, findings come first, and last what would change the verdicts.

All are set while the pages are built, so that a new title needs no chapter to be run again.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from vlalign_utils.book import toc
from vlalign_utils.book.pages import closing, scale
from vlalign_utils.book.pages.markdown import text
from vlalign_utils.evidence.results import read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import COMPARISON, Registry

SHOWN = "parameters"  # the tag of the one code cell that is not folded
OUTDATED = "outdated.json"
LINK = re.compile(r"(?<=\]\()(\w+)(?=\.ipynb[)#])")  # to a chapter beside this one
EARLIER = """:::{{admonition}} Of an earlier state
:class: warning

Code, parameters or model have changed since this chapter was executed. `make book ARCHS={arch}` executes
it again.
:::"""


def compose(notebook: NotebookNode, document: str, entries: Registry, root: Path) -> None:
    """Give the notebook of a document its title, findings, folded code and closing section, in place.

    A link to a chapter that its model has not leads to that of the first model that has it.
    Raises ResultsError when its results are missing or malformed, RegistryError for an unknown architecture.
    """
    arch = PurePosixPath(document).parent.name
    earlier = EARLIER.format(arch=arch) if document in outdated(root) else ""
    results = read(root / f"{document}.json")
    if arch == COMPARISON:
        title, measured_on = "", scale.about_all(entries, root)
    else:
        entry = entries.architecture(arch)
        title, measured_on = entry.title, scale.about_one(entry, root)
    opening = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    opening.source = _opened(opening.source, title, results.findings, measured_on, earlier)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda link: _beside(link[0], arch, entries), cell.source)
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "code" and SHOWN not in tags:
            tags.append("hide-input")
    if results.claims:
        notebook.cells.append(new_markdown_cell(closing.section(results.claims)))


def _beside(notebook: str, arch: str, entries: Registry) -> str:
    """The path of a chapter from those of an architecture: its own, or the first model's that has it."""
    own = entries.architectures.get(arch)  # none for the comparison
    others = (name for name, entry in entries.architectures.items() if notebook in entry.notebooks)
    there = arch if own is None or notebook in own.notebooks else next(others, arch)
    return notebook if there == arch else f"../{there}/{notebook}"


def note_outdated(chapters: Sequence[tuple[str, str]], folder: Path) -> None:
    """Note in the folder of generated pages which chapters, by architecture and notebook, are of before."""
    documents = [toc.chapter(arch, notebook) for arch, notebook in chapters]
    write_atomic(folder / OUTDATED, json.dumps(documents))


def outdated(root: Path) -> list[str]:
    """Documents of the chapters of an earlier state, as the build has noted them."""
    documents: list[str] = json.loads((root / toc.GENERATED / OUTDATED).read_bytes())
    return documents


def _opened(source: str, title: str, findings: list[str], measured_on: str, earlier: str) -> str:
    """The first cell: heading with the model's name, findings in a box, then what the cell said.

    `earlier` is said below the heading.
    """
    heading, _, rest = source.partition("\n")
    named = f"{heading}: {text(title)}" if title else heading
    return "\n\n".join(part for part in (named, earlier, box(findings, measured_on), rest.strip()) if part)


def box(findings: list[str], measured_on: str) -> str:
    """Findings as a list, with what they were measured on below, as Markdown."""
    told = [f"- {text(finding)}" for finding in findings]
    return "\n".join(
        ["::::{admonition} What was found", ":class: findings", "", *told, "", text(measured_on), "::::"]
    )
