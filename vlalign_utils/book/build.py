"""Build the pages: complete results only, generated pages first, then a clean Jupyter Book build."""

import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

from vlalign_utils.book import toc
from vlalign_utils.book.pages import (
    abilities,
    card,
    chapter,
    claims_page,
    downloads,
    families,
    front,
    laboratory,
    scale,
    speed,
    suites,
    things_sources,
    verdicts,
    which_layers,
)
from vlalign_utils.book.pages.markdown import text
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry, staleness
from vlalign_utils.pipeline.registry import COMPARISON, Registry


class BookError(RuntimeError):
    """The book cannot be built; the message says what to do."""


def check_complete(entries: Registry, root: Path = ROOT) -> None:
    """Raise BookError naming every chapter without complete, full-size results and findings."""
    archs = entries.architectures.values()
    chapters = [(arch.name, notebook) for arch in archs for notebook in arch.notebooks]
    problems = []
    for arch, notebook in [*chapters, (COMPARISON, entries.comparison)]:
        results = staleness.published(notebook, arch, root)
        if results is None:
            why = "is missing, or its JSON is not of this run"
        elif results.quick:
            why = "was executed at quick size"
        else:
            why = "" if results.findings else "states no findings: an older notebook wrote it"
        if why:
            page = f"{toc.chapter(arch, notebook)}.ipynb"
            problems.append(f"{page} {why}; run: make run ARCH={arch} NB={notebook}")
    if problems:
        raise BookError("\n".join(["the book is not complete:", *problems]))


def check_toc(entries: Registry, root: Path = ROOT) -> None:
    """Raise BookError when `_toc.yml` is not the one that the registry gives."""
    if (root / "_toc.yml").read_text(encoding="utf-8") != toc.render(entries):
        raise BookError("_toc.yml does not match architectures.yml; run: python -m vlalign_utils toc")


def generate(entries: Registry, root: Path = ROOT) -> None:
    """Write the pages and figures that are made from results into `_generated/`."""
    matplotlib.use("Agg")  # figures go to files: no window, whatever the machine has
    folder = root / toc.GENERATED
    shutil.rmtree(folder, ignore_errors=True)
    write_atomic(folder / ".gitignore", "*\n")
    for arch in entries.architectures.values():
        card.write(arch, folder, root)
    chapter.note_outdated(staleness.outdated(root), folder)
    abilities.write(entries, folder, root)
    laboratory.write(entries, folder, root)
    front.write(entries, folder, root)
    write_atomic(folder / "scale.md", f"{text(scale.about_all(entries, root))}\n")
    verdicts.write(entries, folder, root)
    claims_page.write(entries, folder, root)
    which_layers.write(entries, folder, root)
    downloads.write(entries, folder, root)
    suites.write(folder, root)
    things_sources.write(folder, root)
    families.write(folder, root)
    speed.write(folder, root)


def build(root: Path = ROOT) -> Path:
    """Build all pages from scratch into `_build/html` and return that folder. Warnings are errors.

    Nothing is in `_build` while the pages are made, so a build that fails or is killed leaves no half book.
    Raises BookError.
    """
    entries = registry.load(root)
    check_complete(entries, root)
    check_toc(entries, root)
    generate(entries, root)
    shutil.rmtree(root / "_build", ignore_errors=True)
    work = root / ".cache" / "book"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [str(jupyter_book), "build", str(root), "--path-output", str(work)]
    command += ["-W", "-n", "--keep-going", "-q"]
    # Its warnings come on stderr; on stdout it only names the working folder.
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise BookError("Jupyter Book stopped on the warnings and errors above")
    (work / "_build").rename(root / "_build")
    drawn = (root / toc.GENERATED / front.FIGURE).read_text(encoding="utf-8")
    write_atomic(root / "book" / "results" / front.FIGURE, drawn)  # for the README
    return root / "_build" / "html"
