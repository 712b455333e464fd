import json

import nbformat
import pytest

from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.results import Results
from vlalign_utils.pipeline.parameters import (
    ParameterError,
    check_stages,
    checked,
    closure,
    defaults,
    effective,
    input_hash,
    read_notebook,
)
from vlalign_utils.pipeline.registry import Architecture, RegistryError

V4 = nbformat.v4
PARAMETERS = (
    'arch = "llava"\nout_dir = ""\nseed = 0\nquick = False\nrate = 1e-3\nlayers = [1, 2]\nspan = None'
)


def notebook(parameters=PARAMETERS, code="import vlalign_utils.inference.progress"):
    tagged = V4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return V4.new_notebook(cells=[tagged, V4.new_code_cell(code)])


@pytest.fixture
def project(tmp_path):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook(), tmp_path / "notebooks" / "01_a.ipynb")
    for stage in ("base", "tuned"):
        (tmp_path / "zoo" / "llava" / stage).mkdir(parents=True)
        (tmp_path / "zoo" / "llava" / stage / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def llava():
    return Architecture(
        name="llava",
        title="T",
        description="D",
        model="zoo/llava",
        stages=["base", "tuned"],
        notebooks=["01_a"],
    )


def test_defaults_are_the_literals_of_the_parameters_cell():
    found = defaults(notebook(), "01_a")
    assert found["layers"] == [1, 2]
    assert list(found) == ["arch", "out_dir", "seed", "quick", "rate", "layers", "span"]


@pytest.mark.parametrize("line", ["seed = int(3)", "import os", "print(1)", "a.b = 1"])
def test_a_parameters_cell_holds_nothing_else(line):
    with pytest.raises(ParameterError, match=r"01_a: .* write name = literal"):
        defaults(notebook(PARAMETERS + "\n" + line), "01_a")


def test_there_is_one_parameters_cell():
    two = notebook()
    two.cells.append(two.cells[0])
    with pytest.raises(ParameterError, match="exactly one cell tagged 'parameters'; it has 2"):
        defaults(two, "01_a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, "01_a has no parameter 'sede'; did you mean 'seed'"),
        ({"zzz": 1}, "01_a has no parameter 'zzz'; it has: seed, rate, layers, span"),
        ({"seed": "1"}, "'seed' must be of type int, such as 0, not '1'"),
        ({"seed": True}, "'seed' must be of type int"),
        ({"seed": -1}, "'seed' must not be negative, such as 0, not -1"),
        ({"rate": float("nan")}, "'rate' must be a number such as 0.001, not nan"),
        ({"rate": "fast"}, "'rate' must be a number such as 0.001, not 'fast'"),
        ({"layers": "[1, 2]"}, r"'layers' must be a list, not the text '\[1, 2\]'; write \[1, 2\] unquoted"),
        ({"layers": [1, "2"]}, "'layers', item 1 must be of type int"),
        ({"layers": 3}, r"'layers' must be a list such as \[1, 2\], not 3"),
        ({"out_dir": "x"}, "'out_dir' is filled in by the run"),
        ({"arch": "x"}, "'arch' is filled in by the run"),
    ],
)
def test_a_wrong_parameter_is_explained(given, message):
    with pytest.raises(ParameterError, match=message):
        checked(given, defaults(notebook(), "01_a"), "01_a")


def test_numbers_that_yaml_reads_as_text_or_as_int_become_floats():
    known = defaults(notebook(), "01_a")
    assert checked({"rate": "1e-4", "span": [2, 4]}, known, "01_a") == {"rate": 1e-4, "span": [2, 4]}
    assert checked({"rate": 1}, known, "01_a") == {"rate": 1.0}


def test_effective_parameters_are_complete_and_name_no_folder():
    params = effective(notebook(), "01_a", {"arch": "x", "quick": True}, {"seed": 3})
    assert params == {"arch": "x", "seed": 3, "quick": True, "rate": 1e-3, "layers": [1, 2], "span": None}
    with pytest.raises(ParameterError, match="must also define archs"):
        effective(notebook(), "01_a", {"archs": "x"}, {})


def test_closure_follows_imports_of_every_kind():
    direct = closure(notebook(code="%matplotlib inline\nfrom vlalign_utils import registry"))
    assert {"vlalign_utils", "vlalign_utils.paths", "vlalign_utils.pipeline.registry"} <= set(direct)
    driver = closure(notebook(code="from vlalign_utils import load_vlm"))
    assert {
        "vlalign_utils.driver.edits",
        "vlalign_utils.driver.recording",
        "vlalign_utils.driver.vlm",
    } <= set(driver)
    assert "vlalign_utils.pipeline.execute" not in driver
    assert "vlalign_utils.data" in closure(
        notebook(code="def f():\n    from vlalign_utils.data import scenes")
    )


def test_hash_changes_with_source_parameters_and_model_only(project, llava):
    def now(params=None):
        return input_hash("01_a", llava, params or {"seed": 0}, project)

    first = now()
    (project / "zoo" / "llava" / "README.md").write_text("a card")
    (project / "zoo" / "llava" / "tuned" / "README.md").write_text("a card")
    assert now() == first
    assert now({"seed": 1}) != first
    (project / "zoo" / "llava" / "tuned" / "model.safetensors").write_bytes(b"1")
    changed = now()
    assert changed != first
    nbformat.write(
        notebook(code="import vlalign_utils.evidence.results"), project / "notebooks" / "01_a.ipynb"
    )
    assert now() not in (first, changed)


def test_hash_changes_with_what_decides_the_claims_of_this_notebook_only(project, llava):
    def now(**change):
        claim = {
            **dict.fromkeys(("says", "statistic", "formula", "against", "depth", "heading"), "x"),
            **change,
        }
        claim = {
            "source": "paper",
            "works": "x",
            "chapter": "01_a",
            "conditions": {"c": {"above": 0}},
            **claim,
        }
        (project / "book").mkdir(exist_ok=True)
        (project / "book" / "claims.yml").write_text(json.dumps({"claims": {"one": claim}}))
        claim_rules.load.cache_clear()
        return input_hash("01_a", llava, {}, project)

    before = input_hash("01_a", llava, {}, project)
    first = now()
    assert now(says="better said") == first != before
    assert now(conditions={"c": {"above": 0.1}}) != first
    assert now(seeds=3) != first
    assert now(chapter="02_b") == before


def test_a_missing_model_is_explained(project, llava):
    def refused(match, **change):
        with pytest.raises(RegistryError, match=match):
            input_hash("01_a", llava.model_copy(update=change), {}, project)

    refused("zoo/none is missing; run make zoo CHAIN=none", model="zoo/none")
    refused("a hub model needs its 'revision' pinned", model="someone/model", stages=["tuned"])
    refused("is a folder, which has no revision", revision="abc")
    refused(r"llava: zoo/llava holds stages of its own; take 'base' out", base="org/llm")
    (project / "mine" / "sft").mkdir(parents=True)
    refused("llava: .*base holds no config.json; it is no model", model="mine")
    (project / "mine" / "sft" / "config.json").write_text("{}")
    refused("its stages are sft; write those under 'stages'", model="mine")
    (project / "zoo" / "llava" / "base" / "config.json").unlink()
    refused(r"llava: .*base holds no config.json; run make zoo CHAIN=llava")


def test_a_single_model_says_what_its_stages_need(project, llava):
    one = llava.model_copy(update={"model": "one", "stages": ["tuned"]})
    (project / "one").mkdir()
    (project / "one" / "config.json").write_text("{}")
    input_hash("01_a", one, {}, project)
    for stages, match in (
        (["aligned", "tuned"], "one is one model and has no stage 'aligned'; leave 'stages' out"),
        (["base", "tuned"], "stage 'base' of one needs 'base', the hub id"),
    ):
        for change in ({}, {"model": "org/one", "revision": "abc"}):
            with pytest.raises(RegistryError, match=match.replace("of one", "of .*one")):
                input_hash("01_a", one.model_copy(update={"stages": stages, **change}), {}, project)


def test_hash_changes_with_what_is_loaded(project, llava):
    (project / "llm").mkdir()
    (project / "llm" / "config.json").write_text("{}")
    hub = llava.model_copy(update={"model": "someone/model", "revision": "abc", "base": "llm"})
    (project / "one").mkdir()
    (project / "one" / "config.json").write_text("{}")

    def of(**change):
        return input_hash("01_a", hub.model_copy(update=change), {}, project)

    found = [
        of(),
        of(revision="abd"),
        of(dtype="bfloat16"),
        of(device_map="auto"),
        of(base="org/llm", base_revision="a"),
        of(base="org/llm", base_revision="b"),
        of(model="one", revision=None),
    ]
    (project / "llm" / "model.safetensors").write_bytes(b"1")
    found.append(of())
    assert len(set(found)) == len(found)
    with pytest.raises(RegistryError, match="a hub model needs its 'base_revision' pinned"):
        of(base="org/llm")
    with pytest.raises(RegistryError, match="llm is a folder, which has no revision; take 'base_revision'"):
        of(base_revision="x")
    (project / "llm" / "config.json").unlink()
    with pytest.raises(RegistryError, match=r"llm holds no config\.json; name a model under 'base'"):
        of()


def test_a_notebook_that_compares_two_stages_needs_two(llava):
    two = notebook()
    two.cells[0].metadata["tags"].append("two-stages")
    check_stages(two, "01_a", llava)
    one = llava.model_copy(update={"stages": ["tuned"]})
    check_stages(notebook(), "01_a", one)
    with pytest.raises(ParameterError, match=r"01_a compares two stages .* llava has one, tuned: give its"):
        check_stages(two, "01_a", one)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"nbformat": 4, "cells": 3}'])
def test_a_damaged_notebook_is_one_sentence(project, damage):
    (project / "notebooks" / "01_a.ipynb").write_bytes(damage)
    with pytest.raises(ParameterError, match=r"01_a\.ipynb is not a notebook") as caught:
        read_notebook("01_a", project)
    assert "\n" not in str(caught.value)


def test_code_that_is_no_python_is_named(project):
    with pytest.raises(ParameterError, match="01_a: the parameters cell is not Python: line 1"):
        defaults(notebook("seed = = 1"), "01_a")
    with pytest.raises(ParameterError, match="the notebook's code is not Python: line 8"):
        closure(notebook(code="import ("))


def test_the_comparison_depends_on_what_was_measured_not_on_how_long_it_took(project):
    registry = (
        "notebooks: [01_a]\ncomparison: 90_c\narchitectures:\n  llava: {title: T, description: D, model: m}\n"
    )
    (project / "architectures.yml").write_text(registry)
    measured = project / "book" / "results" / "llava" / "01_a.json"
    measured.parent.mkdir(parents=True)

    def now(value=1, seconds=1):
        found = Results(
            notebook="01_a", arch="llava", params={"value": value}, timing={"all": float(seconds)}
        )
        measured.write_text(found.sealed().dumps())
        return input_hash("01_a", None, {}, project)

    assert now(seconds=2) == now()
    assert now(value=2) != now()
    now(seconds=2)
    measured.write_text(measured.read_text().replace("2.0", "3.0"))  # changed, and so no result
    assert input_hash("01_a", None, {}, project) != now()
