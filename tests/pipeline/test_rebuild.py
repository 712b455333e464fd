import os
import sys

import pytest

from vlalign_utils.pipeline import rebuild


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
