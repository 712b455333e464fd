"""The page of benchmarks, and the benchmarks themselves at their smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from benchmarks import memory
from benchmarks.__main__ import run
from benchmarks.sizes import SIZES
from vlalign_utils.book.pages import speed
from vlalign_utils.evidence.results import ResultsError
from vlalign_utils.paths import ROOT

app = typer.Typer()
app.command()(run)


@pytest.mark.slow
def test_make_bench_writes_what_the_page_shows(tmp_path: Path) -> None:
    """The ways are checked against each other in there: a wrong result would end it."""
    out = tmp_path / speed.FOLDER
    command = [sys.executable, "-m", "benchmarks", "--size", "tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.json")
    run = json.loads(path.read_text())["sizes"]["tiny"]
    ways = {(row["task"], row["way"]) for row in run["rows"]}
    assert {way for _, way in ways} >= {
        "replays",
        "nnsight",
        "capture",
        "early stop",
        "replay of the decoder",
        "image and question once",
        "prepare, overlap_grid, imbalance_grid",
        "layer_distances, two_nn",
    }
    bands = [(way, epochs) for way in ("band [2, 3)", "band [0, 2)") for epochs in (1, 3)]
    for name in ("LLaVA", "Qwen3-VL", "Gemma 3"):
        task = f"fine-tune {name}, {{}} steps of {88 if name == 'LLaVA' else 40} tokens, epochs: {{}}"
        assert ways >= {(task.format(2 * n, n), f"{band}, recorded prefix") for band, n in bands}
        assert ways >= {(task.format(2, 1), f"{band}, ordinary loop") for band, _ in bands}
        assert (task.format(6, 3), "band [2, 3), recorded prefix, LoRA of rank 16") in ways
        tuned = [row for row in run["rows"] if row["task"].startswith(f"fine-tune {name}, ")]
        assert all(0 < row["share of FLOPs"] < 1 for row in tuned)
        full, *others = [row for row in run["memory"] if row["way"].startswith(f"fine-tune {name}: ")]
        assert "full tuning" in full["way"]
        assert len(others) == 5
        for row in others:  # of peaks that are rounded to a tenth of a MiB
            low, high = ((row["peak MiB"] - x) / (full["peak MiB"] + x) for x in (0.05, -0.05))
            assert low - 1e-3 <= row["share"] <= high + 1e-3
        assert all(row["share, with weights"] >= row["share"] or row["share"] >= 1 for row in others)
    assert all(row["low"] <= row["times faster"] <= row["high"] for row in run["rows"])
    assert all(row["difference"] <= 1e-5 for row in run["rows"] if "difference" in row)
    speed.write(tmp_path, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| share of the time | seconds | share of the FLOPs |" in page
    assert "| share of the time | seconds | difference |" in page
    planned = json.loads(path.read_text())["plans"]
    assert planned["of"] in page.replace("\\", "")
    full, *_, adapters = [row["total"] for row in planned["rows"]]
    assert full > 100 > 24 > adapters > 13  # GiB: more than any card holds, and what a small one does
    assert all(f"{row['total']:g} |" in page for row in planned["rows"])
    assert all(f"| {row['way']} |" in page.replace("\\", "") for row in run["rows"] + run["memory"])


@pytest.mark.slow
def test_memory_that_was_free_before_is_counted_too() -> None:
    freed = [torch.ones(2**17) for _ in range(128)]  # 64 MiB in pieces that the process does not give back
    kept = freed[::16]
    del freed
    found = memory.peak(SIZES["tiny"], lambda: [torch.ones(2**17) for _ in range(128)])
    assert len(kept) == 8
    # Without what was free it would be 4. Pages of a long process that come and go add or take a few more.
    assert found / memory.MIB == pytest.approx(64, rel=0.1)


@pytest.mark.slow
def test_a_process_that_dies_while_it_is_measured_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="the process that was measured ended with code 3"):
        memory.peak(SIZES["tiny"], lambda: os._exit(3))


def bench(*options: str) -> Result:
    return CliRunner().invoke(app, options)


@pytest.mark.slow
def test_a_part_measured_again_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    def measured(part: str) -> dict:
        assert bench("--size", "tiny", "--only", part, "--out", str(tmp_path)).exit_code == 0
        (path,) = tmp_path.glob("*.json")
        return json.loads(path.read_text())["sizes"]["tiny"]

    reuse = measured("reuse")["rows"]
    both = measured("geometry,reuse")["rows"]
    assert [row["way"] for row in both[-len(reuse) :]] == [row["way"] for row in reuse]
    assert len(both) == len(reuse) + 2
    assert measured("geometry")["rows"][: len(reuse)] == both[-len(reuse) :]


def test_a_share_is_one_over_times_faster(tmp_path: Path) -> None:
    timed = {"task": "t", "way": "w", "against": "a", "times faster": 2.5, "low": 2.0, "high": 3.0}
    timed |= {"seconds": 4.0, "seconds, usual": 10.0, "rounds": 3}
    trained = timed | {"task": "tuned", "share of FLOPs": 0.353}
    checked = timed | {"task": "checked", "difference": 2e-7}
    plain = {"way": "plain", "peak MiB": 10.0}
    shared = {"way": "shared", "peak MiB": 5.0, "share": 0.5, "share, with weights": 0.625}
    about = dict.fromkeys(("device", "model", "torch", "transformers"), "x")
    (tmp_path / speed.FOLDER).mkdir(parents=True)
    for taken, expected in (
        ([plain, shared], ["| plain | 10 |  |  |", "| shared | 5 | 50 % | 62.5 % |"]),
        ([plain], ["| way | MiB |", "| plain | 10 |"]),
    ):
        planned = {"of": "a model", "rows": [{"strategy": "band", "optimiser": "adamw", "total": 1.5}]}
        rows = [timed, trained, checked]
        record = {"sizes": {"small": {**about, "rows": rows, "memory": taken}}, "plans": planned}
        (tmp_path / speed.FOLDER / "one.json").write_text(json.dumps(record))
        speed.write(tmp_path, tmp_path)
        page = (tmp_path / "benchmarks.md").read_text().replace("\N{NO-BREAK SPACE}", " ").replace("\\", "")
        lines = page.splitlines()
        assert "| band | adamw | 1.5 |" in lines
        for ending in ("| 4 |", "| 4 | 35.3 % |", "| 4 | 2e−07 |"):
            assert f"| w | 2.5 [2, 3] | 40 % {ending}" in lines
        assert set(expected) <= set(lines)


def test_a_size_or_part_that_is_not_there_or_cannot_run_here_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = "there is no size 'huge'; there are tiny, small, 7b"
    part = "there is no part 'huge'; there are memory, memory of tuning, reuse,"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in (
        (["huge"], known),
        (["7b"], "needs a cuda device"),
        (["tiny", "--only", "huge"], part),
    ):
        done = bench("--size", *options)
        assert done.exit_code == 1
        assert message in done.stderr


def test_a_malformed_record_is_named(tmp_path: Path) -> None:
    (tmp_path / speed.FOLDER).mkdir(parents=True)
    (tmp_path / speed.FOLDER / "old.json").write_text('{"rows": []}')
    with pytest.raises(ResultsError, match=r"old.json is not a benchmark record .*make bench"):
        speed.write(tmp_path, tmp_path)
