"""The examples of the page on rerunning run as they stand."""

import re

import pytest

from vlalign_utils.paths import ROOT

PAGE = (ROOT / "book" / "reproduce.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").symlink_to(ROOT / "zoo")
    there = set(tmp_path.iterdir())
    found = {}
    exec(compile(EXAMPLES[number], f"reproduce.md, example {number + 1}", "exec"), found)
    assert "vlm" in found
    written = {path.name for path in set(tmp_path.iterdir()) - there}
    assert {
        name
        for name in ("prefixes", "tuning.ckpt", "tuned-band", "states")
        if f'"{name}"' in EXAMPLES[number]
    } == written


def test_every_example_is_found():
    assert len(EXAMPLES) == PAGE.count("```python")
    assert EXAMPLES
