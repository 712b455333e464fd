"""Every notebook: clean sources, and a quick run for every architecture that has it; for one of them strict
nbval, pictures included, with the same results.

The quick runs are shared between test processes: one runs a notebook, the others wait for it.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from PIL import Image

from vlalign_utils.evidence.results import read
from vlalign_utils.evidence.yaml_files import load_yaml
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry, staleness
from vlalign_utils.pipeline.execute import START_TIMEOUT, execute, kernel_environment
from vlalign_utils.pipeline.normalise import digest
from vlalign_utils.pipeline.parameters import SET_BY_RUN, defaults, read_notebook
from vlalign_utils.pipeline.registry import COMPARISON

ENTRIES = registry.load()
# Other seeds run the code that the first one runs; the comparison needs a second seed of one small model.
SEEDS = [entry for entry in ENTRIES.architectures.values() if entry.laboratory and entry.repeats]
TRIED = [entry for entry in ENTRIES.architectures.values() if entry in SEEDS[:1] or not entry.repeats]
TRIED.sort(key=lambda entry: not entry.laboratory)  # what is run several times is of a small model
RUNS = [(entry.name, notebook) for entry in TRIED for notebook in entry.notebooks]
RUNS.append((COMPARISON, ENTRIES.comparison))
NOTEBOOKS = [*ENTRIES.notebooks, ENTRIES.comparison]
HAVE = {notebook: [arch for arch, other in RUNS if other == notebook] for notebook in NOTEBOOKS}
# A model of thirty layers takes minutes where one of eight takes seconds: fewer items, windows and targets.
WIDE = {"width": 10, "stride": 10}
SMALLER = {
    "01_model": {"items": 4},
    "02_probing": {"items": 40, "lens_items": 8},
    "04_causal": {"items": 10, "removal_width": 10, "compared": 10, "bypassed": 10, **WIDE},
    "06_patching": {"items": 10, "targets": [0], **WIDE},
    "09_where": {"items": 60, "questions": 8, "pairs": 10, **WIDE},
}
# A notebook is run again for one architecture, each for another one where it can be.
AGAIN = [(archs[i % len(archs)], notebook) for i, (notebook, archs) in enumerate(HAVE.items())]
pytestmark = pytest.mark.timeout(1800)  # a test may wait for another process that runs the notebook
QUICK = pytest.mark.notebooks


@pytest.fixture(scope="session")
def project(tmp_path_factory, worker_id):
    """A copy of the project, by links, with an empty book of its own."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "project"
    root.mkdir(exist_ok=True)
    with FileLock(root.with_suffix(".lock")):
        if not (root / "zoo").is_symlink():
            link(root)
    return root


def link(root: Path) -> None:
    """Give a folder the project's notebooks and models, and a registry of those that are tried."""
    for name in ("notebooks", "zoo"):
        (root / name).symlink_to(ROOT / name)
    known = load_yaml(ROOT / "architectures.yml")
    tried = {name: entry for name, entry in known["architectures"].items() if name in {e.name for e in TRIED}}
    write_atomic(root / "architectures.yml", json.dumps({**known, "architectures": tried}))


def executed(project: Path, arch: str, notebook: str) -> Path:
    """The quick run of a notebook, made by whichever test process asks first."""
    if notebook == ENTRIES.comparison:
        for needed in RUNS[:-1]:
            executed(project, *needed)
    page = project / "book" / "results" / arch / f"{notebook}.ipynb"
    entry = ENTRIES.architectures.get(arch)  # none for the comparison
    params = {} if entry is None or entry.laboratory else SMALLER.get(notebook, {})
    with FileLock(project.parent / f"{arch}-{notebook}.lock"):
        return page if page.is_file() else execute(notebook, arch, params, quick=True, root=project)


# nbval compares pictures only where nbdime is installed, and then prints whole notebooks.
PICTURES = """
from nbval.plugin import IPyNbFile

begin = IPyNbFile.__init__


def with_pictures(self, *given, **named):
    begin(self, *given, **named)
    self.skip_compare = tuple(kind for kind in self.skip_compare if not kind.startswith("image/"))


IPyNbFile.__init__ = with_pictures
"""


def nbval(page: Path, project: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """Run strict nbval on an executed notebook, away from this project's own pytest settings."""
    write_atomic(work / "pytest.ini", "[pytest]\n")
    write_atomic(work / "with_pictures.py", PICTURES)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CI"},  # which lengthens the summary
        **kernel_environment(work / "jupyter"),
        "VLALIGN_RESULTS": str(project / "book" / "results"),
    }
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout", "600"]
    command += ["--nbval-kernel-startup-timeout", str(START_TIMEOUT), "-c", "pytest.ini"]
    command += ["-p", "with_pictures", "-p", "no:cacheprovider", "-p", "no:xdist", "--color", "no", str(page)]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_source_is_stripped_and_short(name):
    notebook = read_notebook(name, ROOT)
    first = "archs" if name == ENTRIES.comparison else "arch"
    assert list(defaults(notebook, name))[:4] == [first, "out_dir", "seed", "quick"]
    assert set(defaults(notebook, name)) & set(SET_BY_RUN) == {first, "out_dir", "quick"}
    assert notebook.cells[0].source.startswith("# ")
    for number, cell in enumerate(notebook.cells, 1):
        assert not cell.get("outputs"), f"cell {number} has outputs"
        assert cell.get("execution_count") is None, f"cell {number} has an execution count"
        assert str(ROOT) not in cell.source, f"cell {number} holds a path of this machine"
        tags = cell.metadata.get("tags", [])
        assert ("timing" in tags) == ("nbval-ignore-output" in tags), (
            f"cell {number}: one tag without the other"
        )
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, f"cell {number} has more than 15 lines"


def test_every_notebook_is_in_the_registry():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NOTEBOOKS)


@QUICK
@pytest.mark.parametrize(("arch", "notebook"), RUNS)
def test_a_quick_run_is_published(project, arch, notebook):
    page = nbformat.read(executed(project, arch, notebook), as_version=4)
    measured = staleness.published(notebook, arch, project)
    assert measured.quick
    assert measured.notebook_digest == digest(page)
    assert measured.values or measured.tables


@QUICK
@pytest.mark.parametrize(("arch", "notebook"), AGAIN)
def test_a_quick_run_passes_strict_nbval_and_reports_the_same(project, tmp_path, arch, notebook):
    page = executed(project, arch, notebook)
    by_hand = ROOT / ".cache" / "scratch" / arch / f"{notebook}.json"
    by_hand.unlink(missing_ok=True)
    checked = nbval(page, project, tmp_path)
    assert checked.returncode == 0, checked.stdout
    measured = staleness.published(notebook, arch, project)
    # Seconds, and what publishing fills in.
    kept = ("timing", "params", "input_hash", "notebook_digest", "content_digest")
    again = read(by_hand).model_copy(update={name: getattr(measured, name) for name in kept})
    assert again.dumps() == measured.dumps()
    assert 2 <= len(measured.findings) <= 4
    shown = nbformat.read(page, as_version=4)
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in shown.cells)
    printed = [o.text for cell in shown.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    assert not any(re.search(r": \d+/\d+$", text, re.MULTILINE) for text in printed)


# "Byte for byte" aside from timing: the digest covers all but the outputs of timing cells.
@QUICK
@pytest.mark.parametrize(("arch", "notebook"), [RUNS[0], RUNS[-1]])
def test_a_deleted_result_comes_back_byte_for_byte(project, tmp_path, arch, notebook):
    before = nbformat.read(executed(project, arch, notebook), as_version=4)
    measured = staleness.published(notebook, arch, project)
    link(tmp_path)
    if notebook == ENTRIES.comparison:
        shutil.copytree(project / "book", tmp_path / "book")
        (tmp_path / "book" / "results" / arch / f"{notebook}.json").unlink()
    after = nbformat.read(execute(notebook, arch, quick=True, root=tmp_path), as_version=4)
    assert digest(after) == digest(before)
    assert staleness.published(notebook, arch, tmp_path).measured() == measured.measured()


@QUICK
def test_one_tampered_number_and_one_tampered_picture_fail_nbval(project, tmp_path):
    arch, name = RUNS[0]
    notebook = nbformat.read(executed(project, arch, name), as_version=4)
    compared = [cell for cell in notebook.cells if "timing" not in cell.metadata.get("tags", [])]
    drawn = [
        cell for cell in compared if any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
    ]
    *_, shown = (o for o in drawn[-1].outputs if "image/png" in o.get("data", {}))
    shown.data["image/png"] = base64.b64encode(
        one_pixel_more(base64.b64decode(shown.data["image/png"]))
    ).decode()
    written = [cell for cell in compared if cell is not drawn[-1]]
    last = [o for cell in written for o in cell.get("outputs", []) if o.output_type == "stream"][-1]
    digit = next(i for i in reversed(range(len(last.text))) if last.text[i].isdigit())
    last.text = last.text[:digit] + str((int(last.text[digit]) + 1) % 10) + last.text[digit + 1 :]
    page = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook, page)
    checked = nbval(page, project, tmp_path)
    assert checked.returncode == 1, checked.stdout[-5000:]
    assert "2 failed" in checked.stdout
    assert checked.stdout.count("Cell outputs differ") == 2


def one_pixel_more(png: bytes) -> bytes:
    """The picture with one pixel of another colour."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    red, *rest = picture.getpixel((0, 0))
    picture.putpixel((0, 0), (red ^ 1, *rest))
    changed = io.BytesIO()
    picture.save(changed, "png")
    return changed.getvalue()
