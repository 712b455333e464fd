"""The page of benchmarks, and the benchmarks themselves at their smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlalign_utils.book import speed
from vlalign_utils.paths import ROOT
from vlalign_utils.results import ResultsError


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
        "prepare, overlap_grid, imbalance_grid",
        "layer_distances, two_nn",
    }
    assert all(row["low"] <= row["times faster"] <= row["high"] for row in run["rows"])
    assert all(row["difference"] <= 1e-5 for row in run["rows"] if "difference" in row)
    speed.write(tmp_path, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert all(f"| {row['way']} |" in page.replace("\\", "") for row in run["rows"] + run["memory"])


def test_a_size_that_is_not_there_or_cannot_run_here_is_refused() -> None:
    known = "there is no size 'huge'; there are tiny, small, 7b"
    for size, message in (("huge", known), ("7b", "needs a cuda device")):
        command = [sys.executable, "-m", "benchmarks", "--size", size]
        without_card = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            command, cwd=ROOT, env=without_card, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert message in done.stderr


def test_a_malformed_record_is_named(tmp_path: Path) -> None:
    (tmp_path / speed.FOLDER).mkdir(parents=True)
    (tmp_path / speed.FOLDER / "old.json").write_text('{"rows": []}')
    with pytest.raises(ResultsError, match=r"old.json is not a benchmark record .*make bench"):
        speed.write(tmp_path, tmp_path)
