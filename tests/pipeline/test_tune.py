import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from vlalign_utils.paths import PACKAGE, ROOT
from vlalign_utils.tuning.protocol import FEWER

SMALL = {"suites": ["digits"], "steps": 1, "batch_size": 4, "seeds": FEWER, "rates": [0.001], "items": 2}


@pytest.fixture
def project(tmp_path):
    """A copy of the package beside the project's models, with a small study in its registry."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("zoo", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    entry = {"title": "T", "description": "D", "model": "zoo/mllama", "stages": ["base", "aligned", "tuned"]}
    entry |= {"notebooks": ["05_tuning"], "parameters": {"05_tuning": SMALL | {"rounds": 2}}}
    known = {"notebooks": ["05_tuning"], "comparison": "90_comparison", "architectures": {"small": entry}}
    (tmp_path / "architectures.yml").write_text(yaml.safe_dump(known))
    return tmp_path


def tune(project):
    command = [sys.executable, "-m", "vlalign_utils", "tune", "small", "--cores", "2"]
    where = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(command, cwd=project, env=where, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_processes_share_a_study_and_none_of_it_is_trained_twice(project):
    first = tune(project)
    assert first.stdout == f"book/studies/small.jsonl: {12 * FEWER} runs\n"
    path = project / "book" / "studies" / "small.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    runs = [(r["strategy"], r["seed"]) for r in records if r["what"] == "run"]
    assert len(set(runs)) == len(runs) == 12 * FEWER
    (log,) = (project / ".cache" / "studies").glob("small-*.jsonl")
    made = [json.loads(json.loads(line)["line"]) for line in log.read_text().splitlines()]
    assert sorted(r["key"] for r in made) == sorted(r["key"] for r in records)  # each once
    before = log.read_bytes()
    assert tune(project).stdout == first.stdout
    assert log.read_bytes() == before
