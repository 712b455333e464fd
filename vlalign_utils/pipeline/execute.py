"""One Papermill run: checked parameters, normalised output, published whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from vlalign_utils.evidence.claim_rules import ClaimError
from vlalign_utils.evidence.results import Results, ResultsError, read
from vlalign_utils.evidence.yaml_files import YamlError, load_yaml
from vlalign_utils.paths import ROOT, os_error, write_atomic, write_together
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.normalise import PageError, check_size, digest, machine_paths, normalise
from vlalign_utils.pipeline.page_markup import check_markup
from vlalign_utils.pipeline.parameters import ParameterError, defaults, read_notebook
from vlalign_utils.pipeline.registry import COMPARISON, RegistryError
from vlalign_utils.pipeline.staleness import marker, plan

TIMEOUT_VARIABLE = "VLALIGN_CELL_TIMEOUT"
START_TIMEOUT = 300  # seconds for a kernel to answer; on a busy machine a minute is not enough
CELL_TIMEOUT = 3600  # seconds; a cell that takes longer is taken to hang, unless another limit is given


class RunError(RuntimeError):
    """A notebook that did not complete; nothing of it was published."""


Expected = (RunError, ParameterError, PageError, ResultsError, RegistryError, ClaimError)


def execute(
    notebook: str,
    arch: str,
    params: dict[str, Any] | None = None,
    quick: bool = False,
    root: Path = ROOT,
    cell_timeout: int | None = None,
) -> Path:
    """Run one notebook and publish it with its JSON in `book/results/<arch>/`; return the notebook's path.

    Works in a folder of its own, so a run that raises or is killed leaves what was published untouched.
    `cell_timeout` is the time in seconds that a cell may take: by default the registry entry's, else an hour.
    Raises ParameterError, RegistryError, RunError, ResultsError or PageError, each naming the notebook.
    """
    try:
        return _execute(notebook, arch, params or {}, quick, root.resolve(), cell_timeout)
    except OSError as error:  # a full disk, or a folder that may not be written
        raise RunError(f"{notebook} ({arch}): {os_error(error)}. Nothing was published.") from None


def _execute(
    notebook: str, arch: str, params: dict[str, Any], quick: bool, root: Path, cell_timeout: int | None
) -> Path:
    everything, inputs = plan(notebook, arch, params, quick, root, fetch=True)
    limit = cell_timeout or _own_limit(arch, root) or CELL_TIMEOUT
    (root / ".cache").mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"run-{arch}-{notebook}-", dir=root / ".cache"))
    try:
        executed = _run(notebook, arch, everything, root, scratch, limit)
        normalise(executed, machine_paths(root, scratch))
        measured = _measured(notebook, arch, scratch)
        stamped = measured.model_copy(
            update={
                "params": everything,
                "input_hash": inputs,
                "notebook_digest": digest(executed),
                "quick": quick,
            }
        ).sealed()
        check_markup(executed, f"{notebook} ({arch})")
        text = nbformat.writes(executed) + "\n"
        check_size(executed, text, f"{notebook} ({arch})")
        folder = root / "book" / "results" / arch
        # The marker says nothing until the book holds the result. The JSON carries the notebook's digest: a
        # kill between the two leaves a pair that does not match, which `published` takes for missing.
        write_atomic(marker(root, arch, notebook, inputs), "")
        page = folder / f"{notebook}.ipynb"
        write_together({page: text, page.with_suffix(".json"): stamped.dumps()})
        return page
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _own_limit(arch: str, root: Path) -> int | None:
    return None if arch == COMPARISON else registry.load(root).architecture(arch).cell_timeout


def kernel_environment(folder: Path) -> dict[str, str]:
    """Environment that makes "python3" a kernel of this very Python, one thread, the same hash seed, quiet.

    A kernel registered under that name by another environment would otherwise win.
    """
    write_atomic(folder / "kernels" / "python3" / "kernel.json", json.dumps(get_kernel_dict()))
    return {
        "JUPYTER_PATH": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",  # how far a loop is says nothing to a reader
        # tqdm's hint, on import, that live bars need ipywidgets: a page has no live bars.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }


@contextmanager
def _environment(update: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a block, then restore the old ones."""
    before = {name: os.environ.get(name) for name in update}
    os.environ.update(update)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(
    notebook: str, arch: str, params: dict[str, Any], root: Path, scratch: Path, limit: int
) -> NotebookNode:
    """Execute in `scratch`, where the notebook's Report goes too, and check that every cell completed."""
    where = f"{notebook} ({arch})"
    known = defaults(read_notebook(notebook, root), notebook)
    changed = {name: value for name, value in params.items() if value != known[name]}
    environment = {
        **kernel_environment(scratch / "jupyter"),
        "VLALIGN_RESULTS": str(root / "book" / "results"),
    }
    try:
        with _environment(environment):
            executed = papermill.execute_notebook(
                root / "notebooks" / f"{notebook}.ipynb",
                scratch / "executed.ipynb",
                parameters={**changed, "out_dir": str(scratch)},
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=scratch,
                start_timeout=START_TIMEOUT,
                execution_timeout=limit,
                shutdown_kernel="immediate",
                # Sockets are files in the run's own folder: parallel runs cannot grab each other's ports.
                config=Config(KernelManager={"transport": "ipc"}),
            )
    except PapermillExecutionError as error:
        raise RunError(f"{where} failed in {_place(error)}. Nothing was published.") from None
    except CellTimeoutError:
        raise RunError(
            f"{where}: a cell ran for more than {limit} s. Nothing was published. Give it longer with "
            f"{TIMEOUT_VARIABLE}, or `cell_timeout` of its entry in architectures.yml."
        ) from None
    except DeadKernelError:
        raise RunError(f"{where}: its kernel died, killed or out of memory. Nothing was published.") from None
    except RuntimeError as error:  # what the Jupyter client raises for a kernel that never answered
        raise RunError(f"{where}: its kernel failed: {error}. Nothing was published.") from None
    record = executed.metadata.papermill
    done = [
        c.metadata.papermill.status == "completed"
        for c in executed.cells
        if c.cell_type == "code" and c.source
    ]
    if record.get("exception") or not record.get("end_time") or not all(done):
        raise RunError(f"{where} did not complete every cell. Nothing was published.")
    return executed


def _place(error: PapermillExecutionError) -> str:
    """Cell (as numbered in the source), line and message of an error that a notebook raised."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    line = re.search(r"Cell In\[\d+\], line (\d+)", trace)
    quoted = ""
    if line and int(line[1]) <= len(error.source.splitlines()):
        quoted = f', line {line[1]}, "{error.source.splitlines()[int(line[1]) - 1].strip()}"'
    # Papermill has added one cell, the parameters in use, ahead of any cell that can fail.
    return f"cell {error.cell_index}{quoted}: {error.ename}: {error.evalue}"


def _measured(notebook: str, arch: str, scratch: Path) -> Results:
    """The JSON that the run wrote, which must be about this notebook and architecture."""
    path = scratch / f"{notebook}.json"
    if not path.is_file():
        raise RunError(f"{notebook} ({arch}) wrote no {path.name}: its last cell must call report.save()")
    results = read(path)
    if (results.notebook, results.arch) != (notebook, arch):
        raise RunError(
            f"{notebook} ({arch}) reported as {results.notebook} ({results.arch}): correct its Report(...)"
        )
    return results


def read_params(path: Path) -> dict[str, Any]:
    """Parameters from a YAML file. Raises ParameterError unless it is a mapping of names to values."""
    try:
        data = load_yaml(path)
    except YamlError as error:
        raise ParameterError(f"the parameter file {error}") from None
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise ParameterError(f"the parameter file {path} must hold lines such as 'seed: 1'")
    return data
