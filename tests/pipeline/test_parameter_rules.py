import numpy as np
import pytest
import yaml

from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import parameter_rules, registry, staleness
from vlalign_utils.pipeline.parameter_rules import OF_WORLD, RELATIONS, RELATIONS_OF_WORLD, RULES, fault
from vlalign_utils.pipeline.parameters import SET_BY_RUN, ParameterError, defaults, read_notebook

ENTRIES = registry.load()
NOTEBOOKS = [*ENTRIES.notebooks, ENTRIES.comparison]


def params(name):
    found = defaults(read_notebook(name, ROOT), name)
    return {key: value for key, value in found.items() if key not in SET_BY_RUN}


def test_every_parameter_of_every_notebook_has_a_rule_that_its_default_meets():
    known, rules = set(), set(RULES) | set(OF_WORLD["drawn"])
    for name in NOTEBOOKS:
        own = params(name)
        known |= set(own)
        assert set(own) <= rules, name
        assert fault(own, layers=8) is None, name
    assert known == rules
    for relations in (RELATIONS, *RELATIONS_OF_WORLD.values()):
        assert {name for relation in relations for name in relation} <= known


@pytest.mark.parametrize(
    ("notebook", "given", "message"),
    [
        ("06_patching", {"targets": [77]}, r"'targets' must be .* decoder layers.* has 8, 0 to 7.*\[77\]"),
        ("06_patching", {"targets": [8]}, r"'targets' must be"),
        ("06_patching", {"targets": []}, r"'targets' must be"),
        ("06_patching", {"targets": [1, 1]}, r"'targets' must be"),
        ("05_tuning", {"band": [2, 3, 4]}, r"'band' must be two numbers, \[first layer.*not \[2, 3, 4\]"),
        ("05_tuning", {"band": []}, "'band' must be two numbers"),
        ("05_tuning", {"band": [4, 2]}, "'band' must be two numbers"),
        ("05_tuning", {"band": [2, 9]}, r"'band' must be .*\(this model has 8, 0 to 7\)"),
        ("05_tuning", {"band": [0, 8]}, "but not all decoder layers"),
        ("05_tuning", {"steps": 0}, "'steps' must be a whole number of at least 1, not 0"),
        ("05_tuning", {"rates": []}, "'rates' must be a list of one or more different numbers above 0"),
        ("05_tuning", {"rates": [0.0]}, "'rates' must be"),
        ("05_tuning", {"precision": "half"}, "'precision' must be auto, no, bf16 or fp16, not 'half'"),
        ("05_tuning", {"rank": 0}, "'rank' must be"),
        ("04_causal", {"suites": ["atributes"]}, r"'suites' must be .*among attributes, .*'atributes'"),
        ("04_causal", {"suites": ["text"]}, "'suites' must be"),
        ("04_causal", {"suites": []}, "'suites' must be"),
        ("04_causal", {"suites": ["digits", "digits"]}, "'suites' must be"),
        ("04_causal", {"suites": np.array(["digits"])}, "'suites' must be a list such as"),
        ("04_causal", {"width": 9}, "'width' must be a number of layers"),
        ("04_causal", {"width": 0}, "'width' must be"),
        ("04_causal", {"stride": 0}, "'stride' must be"),
        (
            "04_causal",
            {"stride": 3},
            "'stride' is 3, 'width' is 2: there must be no layer between two windows",
        ),
        (
            "02_probing",
            {"concepts": ["colour", "tone"]},
            "'concepts' must be .*of the world 'drawn', among form, colour.* or an empty one",
        ),
        ("02_probing", {"concepts": ["digit"]}, "one of form and colour at least"),
        ("02_probing", {"lens_items": 500}, "'lens_items' is 500, 'items' is 400"),
        ("03_geometry", {"k": 600}, "'k' is 600, 'items' is 600: there must be fewer neighbours than items"),
        ("03_geometry", {"permutations": 0}, "'permutations' must be"),
        ("01_model", {"seed": 2**32}, "'seed' must be a whole number from 0 to 4294967295"),
        ("01_model", {"items": 1}, "'items' must be"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_runs(notebook, given, message):
    with pytest.raises(ParameterError, match=rf"^{notebook}: .*{message}"):
        staleness.plan(notebook, "llava", given, False, ROOT)


def test_suites_are_those_of_the_entry_s_world(tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    entry = {"title": "T", "description": "D", "model": "org/t", "revision": "a", "world": "things"}
    known = {"notebooks": ["04_causal"], "comparison": "90_comparison", "architectures": {"t": entry}}
    (tmp_path / "architectures.yml").write_text(yaml.safe_dump(known))
    given = {"suites": ["naming", "relations"]}
    assert staleness.plan("04_causal", "t", given, False, tmp_path)[0]["suites"] == given["suites"]
    for wrong in ({}, {"suites": ["unseen"]}):  # the default is of the drawn world; a choice is no sweep
        with pytest.raises(ParameterError, match=r"suites of the world 'things', among naming, .* not \["):
            staleness.plan("04_causal", "t", wrong, False, tmp_path)


@pytest.mark.slow
def test_a_value_that_can_be_is_taken():
    given = {"targets": [0, 7], "suites": ["charts"], "width": 8}
    taken, _ = staleness.plan("06_patching", "llava", given, False, ROOT)
    assert given.items() <= taken.items()
    assert staleness.plan("05_tuning", "llava", {"band": [0, 7]}, False, ROOT)[0]["band"] == [0, 7]


def test_what_depends_on_an_unknown_number_of_layers_is_not_judged():
    assert fault({"targets": [77], "band": [70, 80], "width": 20}) is None
    assert fault({"targets": [-1]}) is not None
    assert parameter_rules.needs_layers({"width": 1})
    assert not parameter_rules.needs_layers({"seed": 1, "unknown": 2})
