"""A chapter's page: its title names the model, and its findings come first.

Both are set while the pages are built, so that a new title needs no chapter to be run again.
"""

from pathlib import Path, PurePosixPath

from nbformat import NotebookNode

from vlalign_utils.book.pages import scale
from vlalign_utils.book.pages.markdown import text
from vlalign_utils.evidence.results import read
from vlalign_utils.pipeline.registry import COMPARISON, Registry

SHOWN = "parameters"  # the tag of the one code cell that is not folded


def compose(notebook: NotebookNode, document: str, entries: Registry, root: Path) -> None:
    """Give the notebook of a document its title, findings and folded code, in place.

    Raises ResultsError when its results are missing or malformed, RegistryError for an unknown architecture.
    """
    arch = PurePosixPath(document).parent.name
    findings = read(root / f"{document}.json").findings
    if arch == COMPARISON:
        title, measured_on = "", scale.about_all(entries, root)
    else:
        entry = entries.architecture(arch)
        title, measured_on = entry.title, scale.about_one(entry, root)
    opening = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    opening.source = _opened(opening.source, title, findings, measured_on)
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "code" and SHOWN not in tags:
            tags.append("hide-input")


def _opened(source: str, title: str, findings: list[str], measured_on: str) -> str:
    """The first cell: heading with the model's name, findings in a box, then what the cell said."""
    heading, _, rest = source.partition("\n")
    named = f"{heading}: {text(title)}" if title else heading
    return "\n\n".join([named, box(findings, measured_on), rest.strip()])


def box(findings: list[str], measured_on: str) -> str:
    """Findings as a list, with what they were measured on below, as Markdown."""
    told = [f"- {text(finding)}" for finding in findings]
    return "\n".join(
        ["::::{admonition} What was found", ":class: findings", "", *told, "", text(measured_on), "::::"]
    )
