import re

import pytest

from vlalign_utils.book.pages import which_layers
from vlalign_utils.evidence.results import Estimate, Results, Table
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry

ENTRIES = registry.load()
TEXT = (ROOT / "book" / "which_layers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    which_layers.write(ENTRIES, folder, ROOT)
    return (folder / which_layers.PAGE).read_text(encoding="utf-8")


def test_every_task_has_a_sentence_a_scope_and_its_numbers(page):
    parts = page.split("\n## ")
    assert [part.splitlines()[0].removeprefix("## ") for part in parts] == ["Tune", "Adapt", "Prune"]
    for part in parts:
        assert "*The table is of" in part
        assert "| --- |" in part.replace(":---", "---")


def test_a_number_is_that_of_the_results():
    arch = next(name for name, a in ENTRIES.architectures.items() if which_layers.TUNING in a.notebooks)
    results = which_layers.read(ROOT / "book" / "results" / arch / f"{which_layers.TUNING}.json")
    shown = which_layers._tuned({"T": results})
    gain = results.values["gain of early, share of full"]
    row = next(line for line in shown.splitlines() if line.startswith("| early |"))
    assert f"{gain.value:.2f}" in row
    assert f"{gain.low:.2f}" in row


def test_what_was_not_measured_is_left_blank():
    one = Estimate(value=0.5, low=0.4, high=0.6, n=10, chance=None)
    cost = Table(columns=["strategy"], rows=[["full"], ["band"], ["late"], ["late, LoRA"]])
    found = Results.model_construct(values={"gain of band, share of full": one}, tables={"cost": cost})
    rows = which_layers._tuned({"T": found}).splitlines()
    assert next(row for row in rows if row.startswith("| band |")).count("0.5") == 1
    assert next(row for row in rows if row.startswith("| late |")) == "| late |  |  |"
    assert not any(row.startswith(("| full", "| late, LoRA")) for row in rows)


def test_the_laboratory_alone_is_called_a_guess():
    small = [a for a in ENTRIES.architectures.values() if a.laboratory][:1]
    real = [a for a in ENTRIES.architectures.values() if not a.laboratory][:1]
    assert "it is a guess" in which_layers._scope(small, "08_compression")
    assert "guess" not in which_layers._scope([*real, *small], "08_compression")
    assert (
        which_layers._scope([], "08_compression") == "*There is no table yet: the chapter ran on no model.*"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(EXAMPLES[number], f"which_layers.md, example {number + 1}", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 2
