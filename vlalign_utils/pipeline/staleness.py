"""Which notebooks are stale, and whether the pages still match their sources."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from vlalign_utils.evidence.results import Results, ResultsError, read
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.input_hash import input_hash
from vlalign_utils.pipeline.model_files import n_layers
from vlalign_utils.pipeline.normalise import PageError, digest, read_page
from vlalign_utils.pipeline.parameters import (
    ParameterError,
    check_stages,
    effective,
    read_notebook,
)
from vlalign_utils.pipeline.registry import COMPARISON

PAGE_SOURCES = (
    "_config.yml",
    "_toc.yml",
    "architectures.yml",
    "requirements.lock",
    "book",
    "benchmarks/results",
    "vlalign_utils/book",
    "zoo",
)

PAGES = ".cache/pages"  # the stamp of the pages: the hash of what they were built from


def plan(
    notebook: str, arch: str, params: dict[str, Any], quick: bool, root: Path, fetch: bool = False
) -> tuple[dict[str, Any], str]:
    """Every parameter of a run but its output folder, and its input hash. Raises before anything runs.

    With `fetch` the configuration of a hub model is downloaded, if need be, to check parameters against it.
    """
    entries = registry.load(root)
    if notebook == entries.comparison or arch == COMPARISON:
        if (notebook, arch) != (entries.comparison, COMPARISON):
            raise ParameterError(
                f"{entries.comparison} runs over all architectures: use --arch {COMPARISON} for it alone"
            )
        entry, given = None, params
        filled: dict[str, Any] = {"archs": ",".join(entries.architectures), "quick": quick}
    else:
        entry = entries.architecture(arch)
        read_notebook(notebook, root)
        if notebook not in entry.notebooks:
            have = ", ".join(entry.notebooks)
            raise ParameterError(f"{arch} has no chapter '{notebook}' in architectures.yml; it has: {have}")
        given = {**entry.parameters.get(notebook, {}), **params}
        filled = {"arch": arch, "quick": quick}
    source = read_notebook(notebook, root)
    if entry is not None:
        check_stages(source, notebook, entry)
        layers = partial(n_layers, entry, root, fetch)
        everything = effective(source, notebook, filled, given, layers, entry.world)
    else:
        everything = effective(source, notebook, filled, given)
    return everything, input_hash(notebook, entry, everything, root)


def marker(root: Path, arch: str, notebook: str, inputs: str) -> Path:
    """The empty file that says this machine has executed a notebook for exactly these inputs."""
    return root / ".cache" / "runs" / arch / notebook / inputs


def published(notebook: str, arch: str, root: Path = ROOT) -> Results | None:
    """The results in the book; None when missing, malformed, changed, or not of the notebook beside them."""
    page = root / "book" / "results" / arch / f"{notebook}.ipynb"
    try:
        results = read(page.with_suffix(".json"))
        same = results.notebook_digest == digest(read_page(page))
    except (ResultsError, PageError):
        return None
    return results if same and results.intact else None


def held(notebook: str, arch: str, inputs: str, root: Path = ROOT) -> bool:
    """Check whether the book holds this notebook, executed anywhere, for the inputs with this hash."""
    results = published(notebook, arch, root)
    return results is not None and results.input_hash == inputs


def fresh(notebook: str, arch: str, root: Path = ROOT) -> bool:
    """Check whether the book holds this notebook, executed on this machine for the registry's inputs."""
    inputs = plan(notebook, arch, {}, False, root)[1]
    return marker(root, arch, notebook, inputs).is_file() and held(notebook, arch, inputs, root)


def runs(archs: str = "", root: Path = ROOT) -> list[str]:
    """Markers, relative to the root, that must exist before the book can be built.

    Every notebook of the selected architectures; of the other laboratory models, those the book no longer
    holds for their inputs. Larger models are never run unasked: `outdated` says which of their chapters are
    of an earlier state. A marker whose result has since been lost or replaced is removed here, so that it is
    made again.
    """
    entries = registry.load(root)
    selected = entries.select(archs)
    wanted = []
    for entry in entries.architectures.values():
        if not entry.laboratory and entry not in selected:
            continue
        for notebook in entry.notebooks:
            inputs = plan(notebook, entry.name, {}, False, root)[1]
            path = marker(root, entry.name, notebook, inputs)
            if not held(notebook, entry.name, inputs, root):
                path.unlink(missing_ok=True)
            elif entry not in selected:
                continue
            wanted.append(str(path.relative_to(root)))
    return wanted


def outdated(root: Path = ROOT) -> list[tuple[str, str]]:
    """Architecture and notebook of the chapters that the book holds for other inputs than today's."""
    found = []
    for entry in registry.load(root).architectures.values():
        for notebook in entry.notebooks:
            results = published(notebook, entry.name, root)
            if results and results.input_hash != plan(notebook, entry.name, {}, False, root)[1]:
                found.append((entry.name, notebook))
    return found


def page_hash(root: Path = ROOT) -> str:
    """Hash of everything the pages are made from; model weights count through the results.

    Of the results only notebooks and their JSON are sources: the README's figure is drawn by a build.
    """
    found = [p for name in PAGE_SOURCES for p in (root / name, *(root / name).rglob("*"))]
    results, unused = root / "book" / "results", (".safetensors", ".pyc")
    files = {p for p in found if p.is_file() and p.suffix not in unused and p.parent != results}
    lines = [f"{p.relative_to(root)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in sorted(files)]
    lines += [f"{arch} {notebook} is outdated" for arch, notebook in outdated(root)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pages_current(root: Path = ROOT) -> bool:
    """Check whether `_build/html` was built from exactly these sources."""
    stamp = root / PAGES
    built = (root / "_build" / "html" / "index.html").is_file() and stamp.is_file()
    return built and stamp.read_text() == page_hash(root)
