import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from vlalign_utils.evidence.results import Report
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import execute as execution
from vlalign_utils.pipeline import staleness
from vlalign_utils.pipeline.execute import CELL_TIMEOUT, RunError, execute, read_params
from vlalign_utils.pipeline.parameters import ParameterError

V4 = nbformat.v4
REGISTRY = """
notebooks: [01_a]
comparison: 90_c
architectures:
  tiny: {title: Tiny, description: D, model: zoo/tiny}
"""
PARAMETERS = 'arch = "tiny"\nout_dir = ""\nseed = 0\nquick = False\nact = "print"\nflag = ""'
START = """
import os, sys, time
print("started", os.getcwd(), seed)
print("noise", file=sys.stderr)
"""
ACT = """
if act == "raise":
    seed / 0
if act == "hang":
    open(flag, "w").close()
    time.sleep(600)
if act == "exit":
    os._exit(1)
"""
SAVE = """
if act == "print":
    from vlalign_utils.evidence.results import Report
    report = Report("01_a", arch=arch, out_dir=out_dir)
    report.value("score", 0.5 + seed, 0.4, 1.6, 10)
    report.timing("all", time.time())
    report.save();
"""


@pytest.fixture
def root(tmp_path):
    """A project of one notebook that misbehaves as its parameters say, in a path with a blank."""
    tmp_path = tmp_path / "a b é"
    tmp_path.mkdir()
    (tmp_path / "architectures.yml").write_text(REGISTRY)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "zoo" / "tiny").mkdir(parents=True)
    (tmp_path / "zoo" / "tiny" / "config.json").write_text("{}")
    sources = (PARAMETERS, START, "print(time.time())", ACT, SAVE)
    cells = [V4.new_code_cell(source.strip()) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    cells[2].metadata["tags"] = ["timing", "nbval-ignore-output"]
    nbformat.write(V4.new_notebook(cells=cells), tmp_path / "notebooks" / "01_a.ipynb")
    return tmp_path


def book(root):
    return {p.name: p.read_bytes() for p in (root / "book" / "results" / "tiny").glob("*")}


def leftovers(root):
    return list((root / ".cache").glob("run-*"))


@pytest.mark.slow
def test_a_rerun_is_the_same_bytes_timing_aside(root):
    page = execute("01_a", "tiny", {"seed": 1}, root=root)
    first = nbformat.read(page, as_version=4)
    measured = staleness.published("01_a", "tiny", root)
    assert measured.values["score"].value == 1.5
    assert measured.params == {"arch": "tiny", "seed": 1, "quick": False, "act": "print", "flag": ""}
    assert "seed = 1" in first.cells[0].source
    assert first.cells[1].outputs == [V4.new_output("stream", name="stdout", text="started . 1\n")]
    assert str(root) not in page.read_text()

    execute("01_a", "tiny", {"seed": 1}, root=root)
    again = nbformat.read(page, as_version=4)
    assert first.cells[2].outputs != again.cells[2].outputs
    first.cells[2].outputs = again.cells[2].outputs
    assert first == again
    assert staleness.published("01_a", "tiny", root).measured() == measured.measured()
    assert staleness.marker(root, "tiny", "01_a", measured.input_hash).is_file()
    assert not leftovers(root)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("raise", r'01_a \(tiny\) failed in cell 4, line 2, "seed / 0": ZeroDivisionError: division by zero'),
        pytest.param("exit", r"01_a \(tiny\): its kernel died", marks=pytest.mark.slow),
        pytest.param(
            "no report",
            r"01_a \(tiny\) wrote no 01_a.json: its last cell must call report.save\(\)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_fails_publishes_nothing_and_says_where(root, act, message):
    with pytest.raises(RunError, match=message):
        execute("01_a", "tiny", {"act": act}, root=root)
    assert book(root) == {}
    assert not leftovers(root)


@pytest.mark.slow
def test_a_killed_run_leaves_the_book_as_it_was_and_can_be_run_again(root):
    for name in ("01_a.ipynb", "01_a.json"):
        write_atomic(root / "book" / "results" / "tiny" / name, "published before")
    before = book(root)
    flag = root / "started"
    call = f"execute('01_a', 'tiny', {{'act': 'hang', 'flag': {str(flag)!r}}}, root=Path({str(root)!r}))"
    code = f"from pathlib import Path\nfrom vlalign_utils.pipeline.execute import execute\n{call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not flag.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert book(root) == before
    execute("01_a", "tiny", root=root)
    assert book(root).keys() == before.keys()
    assert staleness.published("01_a", "tiny", root) is not None


def test_nothing_runs_with_a_parameter_that_is_wrong(root):
    with pytest.raises(ParameterError, match=r"01_a has no parameter 'sede'; did you mean 'seed'"):
        execute("01_a", "tiny", {"sede": 1}, root=root)
    with pytest.raises(ParameterError, match=r"there is no notebook '02_b' in notebooks/; it holds: 01_a"):
        execute("02_b", "tiny", root=root)
    assert not (root / ".cache").exists()


def published_before(root):
    for name in ("01_a.ipynb", "01_a.json"):
        write_atomic(root / "book" / "results" / "tiny" / name, "published before")
    return book(root)


@pytest.fixture
def executed(monkeypatch):
    """What a kernel would have brought, without one: only publishing is tried."""
    notebook = V4.new_notebook(cells=[V4.new_code_cell("1")])

    def run(notebook_name, arch, params, root, scratch, limit):
        report = Report("01_a", arch=arch, out_dir=str(scratch))
        report.value("score", 0.5, 0.4, 0.6, 10)
        report.save()
        limits.append(limit)
        return notebook

    limits = []
    monkeypatch.setattr(execution, "_run", run)
    return limits


@pytest.mark.usefixtures("executed")
@pytest.mark.parametrize("full_after", range(6))
def test_a_full_disk_publishes_nothing_and_the_next_run_heals(root, monkeypatch, full_after):
    """Whichever file is the one that no longer fits."""
    before, real, written = published_before(root), Path.write_bytes, []

    def write(path, content):
        written.append(path)
        if len(written) > full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    if full_after < 4:  # the run's report, its marker, and the two files of the book
        with pytest.raises(RunError, match=r"^01_a \(tiny\): .*\(No space left on device\).* Nothing was"):
            execute("01_a", "tiny", root=root)
        assert book(root) == before
        assert not leftovers(root)
        assert staleness.published("01_a", "tiny", root) is None
    monkeypatch.setattr(Path, "write_bytes", real)
    execute("01_a", "tiny", root=root)
    assert staleness.published("01_a", "tiny", root) is not None


@pytest.mark.usefixtures("executed")
@pytest.mark.parametrize("folder", [".cache", "book/results/tiny"])
def test_a_folder_that_cannot_be_written_is_one_sentence(root, folder):
    """A file stands in the folder's place: permissions do not bind root."""
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    (root / folder).write_text("")
    with pytest.raises(RunError, match=r"01_a \(tiny\): .*(File exists|Not a directory).*Nothing was publ"):
        execute("01_a", "tiny", root=root)
    (root / folder).unlink()
    execute("01_a", "tiny", root=root)
    assert staleness.published("01_a", "tiny", root) is not None


def test_the_time_limit_is_the_command_s_then_the_entry_s_then_an_hour(root, executed):
    execute("01_a", "tiny", root=root)
    write_atomic(root / "architectures.yml", REGISTRY.replace("zoo/tiny}", "zoo/tiny, cell_timeout: 90}"))
    execute("01_a", "tiny", root=root)
    execute("01_a", "tiny", root=root, cell_timeout=7)
    assert executed == [CELL_TIMEOUT, 90, 7]


@pytest.mark.slow
def test_a_cell_over_its_limit_is_stopped_and_says_how_to_give_it_longer(root):
    params = {"act": "hang", "flag": str(root / "started")}
    with pytest.raises(RunError, match=r"ran for more than 2 s.*VLALIGN_CELL_TIMEOUT, or `cell_timeout`"):
        execute("01_a", "tiny", params, root=root, cell_timeout=2)
    assert book(root) == {}


def test_commands_of_the_workflow_quote_what_they_are_given():
    lines = [line for line in (ROOT / "Snakefile").read_text().splitlines() if " -m vlalign_utils" in line]
    assert len(lines) == 3
    for line in lines:
        names = re.findall(r"\{([^}]*)\}", line)
        assert names
        assert all(name.endswith(":q") for name in names), line


def test_a_parameter_file_is_a_mapping(tmp_path):
    path = tmp_path / "my.yml"
    with pytest.raises(ParameterError, match=r"my.yml cannot be read: No such file"):
        read_params(path)
    path.write_text("- 1")
    with pytest.raises(ParameterError, match="must hold lines such as 'seed: 1'"):
        read_params(path)
    path.write_text("a: [")
    with pytest.raises(ParameterError, match="is not YAML"):
        read_params(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match="is not text in UTF-8"):
        read_params(path)
    path.write_text("seed: 3\nseed: 4")
    with pytest.raises(ParameterError, match=r"file .*my\.yml is not YAML: line 2: 'seed' is given"):
        read_params(path)
    path.write_text("1: 3")
    with pytest.raises(ParameterError, match="must hold lines such as 'seed: 1'"):
        read_params(path)
    path.write_bytes(b"\xef\xbb\xbfseed: 3")
    assert read_params(path) == {"seed": 3}
