from typing import get_args

import pytest
import yaml

from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.registry import RegistryError

ENTRY = {"title": "T", "description": "D", "model": "zoo/t"}
GOOD = {"notebooks": ["01_a", "02_b"], "comparison": "90_c", "architectures": {"one": ENTRY, "two": ENTRY}}


def write(root, data):
    (root / "architectures.yml").write_text(yaml.safe_dump(data, sort_keys=False))
    return root


def test_the_project_s_own_registry_is_valid():
    entries = registry.load()
    assert entries.select()[0].name == "llava"
    assert entries.architecture("llava").stages == ["base", "aligned", "tuned"]


def test_an_entry_names_one_of_the_worlds_there_are(tmp_path):
    assert {*get_args(registry.World)} == {*WORLDS}
    data = {**GOOD, "architectures": {"one": ENTRY, "two": {**ENTRY, "world": "things"}}}
    entries = registry.load(write(tmp_path, data))
    assert [entry.world for entry in entries.select("all")] == ["drawn", "things"]


def test_laboratory_models_are_those_of_the_zoo_and_the_drawn_world(tmp_path):
    small = {**ENTRY, "model": "zoo/t"}
    others = {"real": {**small, "world": "things"}, "hub": {**ENTRY, "model": "org/t", "revision": "a"}}
    data = {**GOOD, "architectures": {**others, "small": small}}
    entries = registry.load(write(tmp_path, data))
    assert [entry.laboratory for entry in entries.select("all")] == [False, False, True]
    # Of no name the quick one, wherever it stands; where there is none, the first.
    assert [entry.name for entry in entries.select()] == ["small"]
    without = {**GOOD, "architectures": others}
    assert [entry.name for entry in registry.load(write(tmp_path, without)).select()] == ["real"]


def test_notebooks_default_to_all_and_selection_keeps_order(tmp_path):
    entries = registry.load(write(tmp_path, GOOD))
    assert entries.architecture("two").notebooks == ["01_a", "02_b"]
    assert [entry.name for entry in entries.select()] == ["one"]
    assert [entry.name for entry in entries.select("all")] == ["one", "two"]
    assert [entry.name for entry in entries.select("two, one,two")] == ["two", "one"]
    with pytest.raises(RegistryError, match=r"no architecture 'tow' .* did you mean 'two'"):
        entries.select("tow")


def test_an_entry_may_repeat_another_from_a_new_seed(tmp_path):
    again = {**GOOD, "architectures": {"one": ENTRY, "one-1": {**ENTRY, "repeats": "one"}, "two": ENTRY}}
    assert registry.load(write(tmp_path, again)).originals() == ["one", "two"]
    for wrong in ("three", "two"):  # one there is not; one that is a repetition itself
        again["architectures"]["two"] = {**ENTRY, "repeats": wrong}
        with pytest.raises(RegistryError, match=f"'two' repeats '{wrong}', which is no entry of its own"):
            registry.load(write(tmp_path, again))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": 3}, r"architectures\.one\.model: Input should be a valid string"),
        ({"titel": "x"}, r"architectures\.one\.titel: Extra inputs"),
        ({"parameters": {"09_x": {}}}, r"architectures\.one: .*'09_x', which is not among its notebooks"),
        ({"world": "moon"}, r"architectures\.one\.world: Input should be 'drawn' or 'things'"),
        ({"notebooks": ["x"]}, r"architectures\.one\.notebooks\.0"),
    ],
)
def test_errors_name_the_entry_and_the_field(tmp_path, entry, message):
    data = {**GOOD, "architectures": {"one": {**ENTRY, **entry}}}
    with pytest.raises(RegistryError, match=message):
        registry.load(write(tmp_path, data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be a mapping"),
        ({"architectures": {"one": None}}, "the entry 'one' must be a mapping"),
        ({**GOOD, "architectures": {"comparison": ENTRY}}, r"architectures\.comparison: .*choose another"),
        ({**GOOD, "architectures": {"Bad Name": ENTRY}}, r"architectures\.Bad Name\.name"),
        ({"architectures": {"one": ENTRY}}, "comparison: Field required|notebooks: Field required"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, data, message):
    with pytest.raises(RegistryError, match=message):
        registry.load(write(tmp_path, data))


def test_a_missing_or_broken_file_is_explained(tmp_path):
    with pytest.raises(RegistryError, match="cannot be read: No such file"):
        registry.load(tmp_path)
    (tmp_path / "architectures.yml").write_text("a: [")
    with pytest.raises(RegistryError, match="is not YAML"):
        registry.load(tmp_path)


def chain(root, *stages):
    for stage in stages:
        (root / "zoo" / "t" / stage).mkdir(parents=True)
        (root / "zoo" / "t" / stage / "config.json").write_text("{}")


def test_stages_that_are_left_out_are_those_of_the_folder(tmp_path):
    write(tmp_path, GOOD)
    assert registry.load(tmp_path).architecture("one").stages == ["tuned"]  # a model that is not here yet
    chain(tmp_path, "tuned", "aligned", "base")
    assert registry.load(tmp_path).architecture("one").stages == ["base", "aligned", "tuned"]
    chain(tmp_path, "dpo")
    with pytest.raises(RegistryError, match=r"one: .* aligned, base, dpo, tuned; write in 'stages' which"):
        registry.load(tmp_path)
    (tmp_path / "zoo" / "t" / "config.json").write_text("{}")
    assert registry.load(tmp_path).architecture("one").stages == ["tuned"]


def test_one_model_and_its_base_are_two_stages(tmp_path):
    pair = {
        **ENTRY,
        "model": "org/tuned",
        "revision": "abc",
        "base": "org/llm",
        "base_revision": "def",
        "dtype": "bfloat16",
        "device_map": "auto",
    }
    for stages in ({}, {"stages": ["base", "tuned"]}):
        data = {**GOOD, "architectures": {"one": {**pair, **stages}}}
        entry = registry.load(write(tmp_path, data)).architecture("one")
        assert entry.stages == ["base", "tuned"]
        assert (entry.base, entry.base_revision, entry.dtype, entry.device_map) == (
            "org/llm",
            "def",
            "bfloat16",
            "auto",
        )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"base_revision": "x"}, "'base_revision' is given without 'base'"),
        ({"base": "org/llm", "stages": ["tuned"]}, r"with 'base' the stages are \[base, tuned\]"),
        ({"stages": ["tuned", "tuned"]}, "a stage is named twice"),
        ({"dtype": "half"}, r"one\.dtype: Input should be 'auto', 'float32'"),
        ({"device_map": "balanced"}, r"one\.device_map"),
        ({"cell_timeout": 0}, r"one\.cell_timeout: .*greater than or equal to 1"),
    ],
)
def test_what_a_pair_cannot_have_is_said(tmp_path, entry, message):
    with pytest.raises(RegistryError, match=message):
        registry.load(write(tmp_path, {**GOOD, "architectures": {"one": {**ENTRY, **entry}}}))
