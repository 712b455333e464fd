import os
import sys

import pytest

from vlalign_utils.pipeline import rebuild
from vlalign_utils.pipeline.registry import Registry


def test_what_was_started_ends_with_a_build_that_is_interrupted(tmp_path, monkeypatch):
    def interrupted(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(rebuild.typer, "echo", interrupted)
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); print('on', flush=True)"
    with (tmp_path / "lock").open("w") as lock, pytest.raises(KeyboardInterrupt):
        rebuild.show([sys.executable, "-c", f"{code}; time.sleep(600)"], lock.fileno())
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_what_is_shown_as_it_is_and_how_to_execute_it_is_said():
    fields = {"title": "T", "description": "D", "model": "zoo/t", "notebooks": ["01_a", "02_b"]}
    worlds = {"small": "drawn", "real": "things", "again": "things"}
    entries = Registry.model_validate(
        {
            "notebooks": ["01_a", "02_b"],
            "comparison": "90_c",
            "architectures": {n: {**fields, "name": n, "world": world} for n, world in worlds.items()},
        }
    )
    earlier = [("small", "01_a"), ("real", "01_a"), ("real", "02_b"), ("again", "01_a")]
    said = "Shown as an earlier state of code or model gave it: "
    assert rebuild.left_as_they_are(earlier, entries, "") == [
        f"{said}2 chapters of real; make book ARCHS=real executes it again",
        f"{said}1 chapter of again; make book ARCHS=again executes it again",
    ]
    assert len(rebuild.left_as_they_are(earlier, entries, "real")) == 1
    assert rebuild.left_as_they_are(earlier, entries, "all") == []
