"""Bring the whole book up to date: Snakemake executes what is stale, one run at a time in a folder."""

import fcntl
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType

import typer

from vlalign_utils.evidence.findings import counted
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.registry import COMPARISON, Registry
from vlalign_utils.pipeline.staleness import fresh, outdated, pages_current, runs

HOUSEKEEPING = (
    "Assuming unrestricted",
    "Building DAG",
    "Using shell",
    "Select jobs",
    "Execute ",
    "Touching output",
    "Complete log",
    "Elapsed time",
    # A failed job has printed its reason; these add the command line.
    "RuleException",
    "CalledProcessError",
    "Command '",
    "Exiting because",
    "WorkflowError",
    "At least one job",
)


class RebuildError(RuntimeError):
    """A step of the book failed; its reason is already printed."""


def rebuild(archs: str = "", cores: int = 2) -> None:
    """Execute the stale notebooks of `archs` (as `Registry.select` reads it), then the comparison and pages.

    Raises RegistryError or ParameterError before anything runs, and RebuildError when a step has failed.
    """
    signal.signal(signal.SIGTERM, _stop)
    (ROOT / ".cache").mkdir(exist_ok=True)
    lock = os.open(ROOT / ".cache" / "book.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        typer.echo("Another make book is at work in this folder; waiting for it to finish.")
        fcntl.flock(lock, fcntl.LOCK_EX)
    wanted = runs(archs)
    todo = [run for run in wanted if not (ROOT / run).is_file()]
    for line in left_as_they_are(outdated(), registry.load(), archs):
        typer.echo(line)
    if not todo and fresh(registry.load().comparison, COMPARISON) and pages_current():
        return
    for step in (ROOT / ".cache" / "steps").glob("*"):
        step.unlink()
    typer.echo(f"{len(todo)} notebooks to execute, {cores} at a time, then the comparison and the pages")
    # The lock below is held by this process and by Snakemake, and is let go even when they are killed;
    # Snakemake's own lock would stay behind.
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--nolock", "--rerun-incomplete"]
    command += ["--keep-going", "--rerun-triggers", "mtime", "--scheduler", "greedy"]
    command += ["--quiet", "host", "progress", "rules", "reason"]
    command += ["--config", f"archs={archs}"] if archs else []
    if show(command, lock):
        raise RebuildError("the book was not rebuilt; the lines above say what failed.")


def left_as_they_are(earlier: Sequence[tuple[str, str]], entries: Registry, archs: str) -> list[str]:
    """A line for each architecture of which chapters of an earlier state are shown and not executed.

    `earlier` are the architecture and notebook of all chapters of an earlier state, `archs` what is executed.
    """
    executed = {entry.name for entry in entries.select(archs)}
    executed |= {name for name, entry in entries.architectures.items() if entry.laboratory}
    counts = Counter(arch for arch, _ in earlier if arch not in executed)
    return [
        f"Shown as an earlier state of code or model gave it: {counted(n, 'chapter')} of {arch}; "
        f"make book ARCHS={arch} executes it again"
        for arch, n in counts.items()
    ]


def show(command: list[str], lock: int) -> int:
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
