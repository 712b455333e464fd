import json
import shutil
from functools import partial
from itertools import islice

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from vlalign_utils import load_vlm
from vlalign_utils.paths import ROOT, sha256
from vlalign_utils.tuning import train_loop
from vlalign_utils.zoo import build as zoo
from vlalign_utils.zoo import compiled, parts_build, parts_stages, things_data
from vlalign_utils.zoo.recipe import read_any_recipe
from vlalign_utils.zoo.tower_scores import tower_scores

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm")]
STAGES = ("base", "aligned", "tuned")


@pytest.fixture(scope="module", params=["smollm", "smolvlm"])
def chain(request, tmp_path_factory):
    """A chain built by the real code from a real recipe, with two steps a stage."""
    root = tmp_path_factory.mktemp("repo")
    recipe = read_any_recipe(ROOT / "zoo" / "recipes" / f"{request.param}.yml").model_dump() | {
        "tower": "tiny"
    }
    for schedule in recipe["stages"].values():
        schedule.update(steps=2, batch_size=3)
    (root / "zoo" / "recipes").mkdir(parents=True)
    (root / "zoo" / "recipes" / "tiny.yml").write_text(yaml.safe_dump(recipe))
    (root / "zoo" / "recipes" / "again.yml").write_text("like: tiny\nseed: 1\n")
    (root / "zoo" / "smollm").symlink_to(ROOT / "zoo" / "smollm")
    with pytest.MonkeyPatch.context() as patch:
        for module in (zoo, parts_build):
            patch.setattr(module, "ROOT", root)
        patch.setattr(compiled.shutil, "which", lambda name: None)  # it takes a minute
        patch.setattr(parts_build, "tower_scores", partial(tower_scores, queries=1, things=3))
        patch.setattr(
            zoo, "score_chain", lambda folder, world, device: scored.append((folder.name, world, device))
        )
        scored: list[tuple[str, str, str]] = []
        folder = zoo.build("tiny")
        assert scored == [("tiny", "things", "cpu")]
        yield folder
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def weights(chain):
    return {stage: load_vlm(chain, stage, device="cpu").model.state_dict() for stage in STAGES}


def test_stages_train_what_they_say(weights):
    moved = {n for n in weights["base"] if not weights["base"][n].equal(weights["aligned"][n])}
    assert moved
    assert all("multi_modal_projector" in name or "modality_projection" in name for name in moved)
    moved = {n for n in weights["base"] if not weights["aligned"][n].equal(weights["tuned"][n])}
    text = ("language_model.layers", "text_model.layers")
    assert {n.split("layers.")[-1].split(".", 1)[1] for n in moved if any(t in n for t in text)} == {
        f"{part}.weight"
        for part in (
            *(f"self_attn.{p}_proj" for p in "qkvo"),
            *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
        )
    }
    assert not any("vision" in name or "embed_tokens" in name for name in moved)


def test_the_tower_is_trained_once_for_all_stages(chain, weights):
    tower = load_file(chain / parts_build.TOWER)
    assert all(".blocks.0." not in name for name in tower)
    for name, value in tower.items():
        assert torch.equal(value.float(), weights["tuned"][name].float())
    assert not list(chain.glob("*/tower*"))
    drawn = {name for name in weights["tuned"] if "vision_model" in name}
    assert drawn <= set(tower)  # of a tower that is no pretrained part, every weight
    scores = json.loads((chain / parts_build.TOWER_SCORES).read_bytes())
    assert scores["tower"] == sha256(chain / parts_build.TOWER)
    assert set(scores) == {"tower", "before", "after"}


def test_what_is_kept_is_small(chain):
    assert sum(file.stat().st_size for file in chain.rglob("*")) < 28 * 2**20


def test_the_record_says_how_each_stage_was_trained(chain):
    record = json.loads((chain / "record.json").read_text())
    assert list(record["stages"]) == ["vision", "aligned", "tuned"]
    for stage in record["stages"].values():
        assert (stage["steps"], stage["examples"], len(stage["curve"])) == (2, 6, 2)
        assert stage["device"].startswith("1 x CPU")
    assert record["recipe"] == read_any_recipe(chain.parent / "recipes" / "tiny.yml").model_dump()


def test_a_killed_build_resumes_to_the_same_weights(chain, monkeypatch):
    """Killed in the last stage after one of its steps; what the folder holds is not trained again."""
    whole = {path: load_file(path) for path in (chain / "tuned").glob("*.safetensors")}
    shutil.rmtree(chain.parents[1] / ".cache" / "zoo" / "tiny")  # of the other stages, too
    (chain / "tuned" / "stage.json").unlink()
    monkeypatch.setattr(train_loop, "SAVE_EVERY", 1)
    for train in ("train_tower", "train_connector"):
        monkeypatch.setattr(parts_build, train, lambda *given, **named: pytest.fail("it is trained again"))

    def cut(n, seed, step, side):
        if step == 1:
            raise KeyboardInterrupt
        return things_data.questioned(n, seed, step, side)

    monkeypatch.setattr(parts_build, "questioned", cut)
    with pytest.raises(KeyboardInterrupt):
        zoo.build("tiny")
    monkeypatch.setattr(parts_build, "questioned", things_data.questioned)
    zoo.build("tiny")
    assert whole
    for path, before in whole.items():
        after = load_file(path)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_on_the_way_are_those_of_a_stage_that_ends_there(chain, monkeypatch):
    """As if the last stage had ended after its first step: the same file, the layer's bias included."""
    cache = chain.parents[1] / ".cache" / "zoo" / "tiny"
    shutil.rmtree(cache)
    (chain / "tuned" / "stage.json").unlink()
    monkeypatch.setattr(parts_stages, "marks", lambda schedule: [1])
    zoo.build("tiny")
    (left,) = cache.glob("tuned-*-step1.safetensors")
    found = load_file(left)
    (chain / "tuned" / "stage.json").unlink()
    shutil.rmtree(cache)
    real = parts_stages.fit

    def short(task, schedule, batches, *given, **named):
        return real(task, schedule, lambda first: islice(batches(first), 1), *given, **named)

    monkeypatch.setattr(parts_stages, "fit", short)
    zoo.build("tiny")
    kept = load_file(chain / "tuned" / "connector.safetensors") | load_file(
        chain / "tuned" / "lora.safetensors"
    )
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_a_complete_chain_is_not_trained_again(chain, monkeypatch, capsys):
    """What is complete is found from the folder alone: in a clone there are no checkpoints."""
    monkeypatch.setattr(zoo, "build_from_parts", lambda *given: pytest.fail("it is trained"))
    assert zoo.build("tiny") == chain
    assert "zoo/tiny is complete for its recipe" in capsys.readouterr().out
    recipe = read_any_recipe(chain.parent / "recipes" / "tiny.yml")
    assert parts_build.complete(chain, recipe)
    longer = recipe.stages.tuned.model_copy(update={"steps": 3})
    stages = recipe.stages.model_copy(update={"tuned": longer})
    assert not parts_build.complete(chain, recipe.model_copy(update={"stages": stages}))
    (chain / "base" / "config.json").rename(chain / "elsewhere")
    try:
        assert not parts_build.complete(chain, recipe)
    finally:
        (chain / "elsewhere").rename(chain / "base" / "config.json")


def test_a_tower_that_is_not_there_is_named(chain, monkeypatch):
    (chain / parts_build.TOWER).rename(chain / "elsewhere")
    try:
        with pytest.raises(ValueError, match="make zoo CHAIN=tiny"):
            zoo.build("again")
    finally:
        (chain / "elsewhere").rename(chain / parts_build.TOWER)


def test_a_teacher_that_is_not_there_is_named(chain):
    recipe = read_any_recipe(chain.parent / "recipes" / "tiny.yml")
    with pytest.raises(ValueError, match=r"zoo/nobody/tower.safetensors is missing: train it first"):
        parts_build.build_from_parts("tiny", recipe.model_copy(update={"teacher": "nobody"}), "cpu")


def test_a_damaged_record_is_named(tmp_path):
    recipe = read_any_recipe(ROOT / "zoo" / "recipes" / "smollm.yml")
    for text in ("{", "[]", "{}"):
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(ValueError, match=r"record\.json is damaged .*: restore it from git"):
            parts_build.complete(tmp_path, recipe)
