"""What `make book` has to do: which notebooks are stale, and whether the pages still match their sources."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import nbformat
import typer

from vlalign_utils.evidence.results import Results, ResultsError, read
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.normalise import digest
from vlalign_utils.pipeline.parameters import ParameterError, effective, input_hash, read_notebook
from vlalign_utils.pipeline.registry import COMPARISON, RegistryError

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

HOUSEKEEPING = (
    "Assuming unrestricted",
    "Building DAG",
    "Using shell",
    "Select jobs",
    "Execute ",
    "Touching output",
    "Complete log",
    "Elapsed time",
    # A failed job has said why itself; these add the command line.
    "RuleException",
    "CalledProcessError",
    "Command '",
    "Exiting because",
    "WorkflowError",
    "At least one job",
)


def plan(
    notebook: str, arch: str, params: dict[str, Any], quick: bool, root: Path
) -> tuple[dict[str, Any], str]:
    """Every parameter of a run but its output folder, and its input hash. Raises before anything runs."""
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
    everything = effective(read_notebook(notebook, root), notebook, filled, given)
    return everything, input_hash(notebook, entry, everything, root)


def marker(root: Path, arch: str, notebook: str, inputs: str) -> Path:
    """The empty file that says this machine has executed a notebook for exactly these inputs."""
    return root / ".cache" / "runs" / arch / notebook / inputs


def published(notebook: str, arch: str, root: Path = ROOT) -> Results | None:
    """The results in the book; None when missing, malformed, or not of the notebook beside them."""
    page = root / "book" / "results" / arch / f"{notebook}.ipynb"
    try:
        results = read(page.with_suffix(".json"))
        intact = results.notebook_digest == digest(nbformat.read(page, as_version=4))
    except (ResultsError, FileNotFoundError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        return None
    return results if intact else None


def held(notebook: str, arch: str, inputs: str, root: Path = ROOT) -> bool:
    """Whether the book holds this notebook, executed anywhere, for the inputs with this hash."""
    results = published(notebook, arch, root)
    return results is not None and results.input_hash == inputs


def fresh(notebook: str, arch: str, root: Path = ROOT) -> bool:
    """Whether the book holds this notebook, executed on this machine for the registry's inputs."""
    inputs = plan(notebook, arch, {}, False, root)[1]
    return marker(root, arch, notebook, inputs).is_file() and held(notebook, arch, inputs, root)


def runs(archs: str = "", root: Path = ROOT) -> list[str]:
    """Markers, relative to the root, that must exist before the book can be built.

    Every notebook of the selected architectures; of the others, those the book no longer holds for their
    inputs. A marker whose result has since been lost or replaced is removed here, so that it is made again.
    """
    entries = registry.load(root)
    selected = entries.select(archs)
    wanted = []
    for entry in entries.architectures.values():
        for notebook in entry.notebooks:
            inputs = plan(notebook, entry.name, {}, False, root)[1]
            path = marker(root, entry.name, notebook, inputs)
            if not held(notebook, entry.name, inputs, root):
                path.unlink(missing_ok=True)
            elif entry not in selected:
                continue
            wanted.append(str(path.relative_to(root)))
    return wanted


def page_hash(root: Path = ROOT) -> str:
    """Hash of everything the pages are made from; model weights count through the results.

    Of the results only notebooks and their JSON are sources: the README's picture is drawn by a build.
    """
    found = [p for name in PAGE_SOURCES for p in (root / name, *(root / name).rglob("*"))]
    results, unused = root / "book" / "results", (".safetensors", ".pyc")
    files = {p for p in found if p.is_file() and p.suffix not in unused and p.parent != results}
    lines = [f"{p.relative_to(root)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pages_current(root: Path = ROOT) -> bool:
    """Whether `_build/html` was built from exactly these sources."""
    stamp = root / ".cache" / "pages"
    built = (root / "_build" / "html" / "index.html").is_file() and stamp.is_file()
    return built and stamp.read_text() == page_hash(root)


app = typer.Typer(add_completion=False)


def _show(command: list[str], lock: int) -> int:
    """Run Snakemake, print what the notebooks and errors say but not its housekeeping; its exit status."""
    with subprocess.Popen(
        command, cwd=ROOT, pass_fds=[lock], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                if line.strip() and not line.startswith(HOUSEKEEPING):
                    typer.echo(line.rstrip())
        except BaseException:
            # Left alone it could wait for ever on a pipe that nobody reads, and keep the lock.
            process.kill()
            raise
    return process.returncode


def _stop(number: int, frame: FrameType | None) -> None:
    """End as any other exit does, so that what was started is ended too."""
    raise SystemExit(128 + number)


@app.command()
def pages() -> None:
    """Build the book's pages, unless they match their sources already."""
    stamp = ROOT / ".cache" / "pages"
    before = page_hash()
    if not pages_current():
        stamp.unlink(missing_ok=True)
        done = subprocess.run([sys.executable, "-m", "vlalign_utils.book", "build"], cwd=ROOT, check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)
        write_atomic(stamp, before)


@app.command()
def book(
    archs: Annotated[str, typer.Option(help="comma list, or all; default: the first of the registry")] = "",
    cores: Annotated[int, typer.Option(min=1, help="notebooks that run side by side")] = 2,
) -> None:
    """Execute what is stale, then build the pages."""
    signal.signal(signal.SIGTERM, _stop)
    (ROOT / ".cache").mkdir(exist_ok=True)
    lock = os.open(ROOT / ".cache" / "book.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        typer.echo("Another make book is at work in this folder; waiting for it to finish.")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        todo = [run for run in runs(archs) if not (ROOT / run).is_file()]
        compared = fresh(registry.load().comparison, COMPARISON)
        done = not todo and compared and pages_current()
    except (ParameterError, RegistryError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    if not done:
        for step in (ROOT / ".cache" / "steps").glob("*"):
            step.unlink()
        typer.echo(f"{len(todo)} notebooks to execute, {cores} at a time, then the comparison and the pages")
        # The lock below is held by this process and by Snakemake, and is let go even when they are killed;
        # Snakemake's own lock would stay behind.
        command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--nolock", "--rerun-incomplete"]
        command += ["--keep-going", "--rerun-triggers", "mtime", "--scheduler", "greedy"]
        command += ["--quiet", "host", "progress", "rules", "reason"]
        command += ["--config", f"archs={archs}"] if archs else []
        if _show(command, lock):
            typer.echo("Error: the book was not rebuilt; the lines above say what failed.", err=True)
            raise typer.Exit(1)
    typer.echo("The book is up to date: _build/html/index.html")


if __name__ == "__main__":
    app()
