import json

import nbformat
import pytest
from small_notebooks import notebook

from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.results import Results
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline.input_hash import closure, input_hash
from vlalign_utils.pipeline.parameters import ParameterError, read_notebook
from vlalign_utils.pipeline.registry import RegistryError


def test_closure_follows_imports_of_every_kind():
    direct = closure(notebook(code="%matplotlib inline\nfrom vlalign_utils.pipeline import registry"))
    assert {"vlalign_utils.paths", "vlalign_utils.pipeline", "vlalign_utils.pipeline.registry"} <= set(direct)
    driver = closure(notebook(code="from vlalign_utils import load_vlm"))
    assert {f"vlalign_utils.driver.{name}" for name in ("edits", "recording", "vlm")} <= set(driver)
    assert "vlalign_utils.pipeline.execute" not in driver
    inside = closure(notebook(code="def f():\n    from vlalign_utils.data import scenes"))
    assert {"vlalign_utils.data", "vlalign_utils.data.scenes"} <= set(inside)
    assert closure(notebook(code="import vlalign_utils.paths")) == ["vlalign_utils.paths"]


def test_a_public_name_stands_for_its_module_alone():
    found = closure(notebook(code="from vlalign_utils import Interval"))
    assert "vlalign_utils.evidence.intervals" in found
    assert all(module.startswith("vlalign_utils.evidence") for module in found)


def test_the_comparison_depends_on_no_model_code():
    rooms = {module.split(".")[1] for module in closure(read_notebook("90_comparison", ROOT))}
    assert rooms <= {"evidence", "pipeline", "paths"}


@pytest.mark.parametrize("code", ["from vlalign_utils import load_vml", "import vlalign_utils.models"])
def test_a_name_that_is_not_there_is_one_sentence(code):
    with pytest.raises(ParameterError, match=r"imports vlalign_utils\.\w+, which the package does not have"):
        closure(notebook(code=code))


def test_code_that_is_no_python_is_named():
    with pytest.raises(ParameterError, match="the notebook's code is not Python: line 8"):
        closure(notebook(code="import ("))


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


def test_hash_changes_with_the_world(project, llava):
    def of(**change):
        return input_hash("01_a", llava.model_copy(update=change), {}, project)

    assert of(world="drawn") == of() != of(world="things")


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
