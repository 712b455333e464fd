import hashlib
import json
import shutil

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from vlalign_utils import load_vlm
from vlalign_utils.data.suites import SUITES
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.paths import ROOT
from vlalign_utils.tuning import train_loop
from vlalign_utils.zoo import bars, chat_data, stages
from vlalign_utils.zoo import build as zoo
from vlalign_utils.zoo.recipe import STAGES, read_recipe

# A chain is built once, in one process.
CHAINS = {
    name: pytest.param(name, marks=[pytest.mark.xdist_group(name), pytest.mark.slow])
    for name in ("llava", "qwen3vl", "gemma3", "idefics3", "mllama")
}
# One without and one with layers that are trained in between: the loop is the same for all.
RESUMED = [CHAINS["llava"], CHAINS["mllama"]]
# What a chain in the repository is known to miss, and nothing else.
MISSED = {
    "idefics3": {"text"},  # 0.893 where 0.90 is asked
    "llava-1": {"text"},  # 0.895
    "llava-2": {"existence", "mean of seeing"},  # 0.593 where 0.60, and 0.751 where 0.80 is asked
}
AT_CHANCE = {"mllama": {"knowledge"}}
# Chains from parts have their scores in a file of their own.
RECORDS = [
    p for p in sorted((ROOT / "zoo").glob("*/record.json")) if "evaluation" in json.loads(p.read_text())
]


@pytest.fixture(scope="module", params=CHAINS.values())
def chain(request, tmp_path_factory):
    """A chain built by the real code from the real recipe, with two steps a stage and few items."""
    root = tmp_path_factory.mktemp("repo")
    recipe = read_recipe(ROOT / "zoo" / "recipes" / f"{request.param}.yml").model_dump()
    for schedule in recipe["stages"].values():
        schedule.update(steps=2, batch_size=8)
    (root / "zoo" / "recipes").mkdir(parents=True)
    (root / "zoo" / "recipes" / "tiny.yml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "ROOT", root)
        patch.setattr(zoo, "ITEMS", 10)
        yield zoo.build("tiny")
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_stage_is_a_folder_that_plain_transformers_loads(chain):
    for stage in STAGES:
        loaded = AutoModelForImageTextToText.from_pretrained(chain / stage, output_loading_info=True)
        assert not any(loaded[1][name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_stages_train_what_they_say(chain):
    recipe = read_recipe(chain.parent / "recipes" / "tiny.yml")
    base, aligned, tuned = (load_file(chain / stage / "model.safetensors") for stage in STAGES)
    between = ("multi_modal_projector", "merger", "model.connector")
    layers = ("layers.2.", "layers.5.", "layers.8.") if recipe.bridge else ()
    moved = {name for name in base if not base[name].equal(aligned[name])}
    assert moved
    assert all(any(part in name for part in (*between, *layers)) for name in moved)
    moved = {name for name in base if not aligned[name].equal(tuned[name])}
    assert any("self_attn.q_proj" in name for name in moved)
    assert any("embed_tokens" in name for name in moved)
    tower = ("vision_tower.", "vision_model.", "visual.patch_embed", "visual.blocks", "visual.pos_embed")
    assert any(part in name for name in base for part in tower)
    assert not any(part in name for name in moved for part in tower)


def test_the_record_holds_curves_sizes_and_scores(chain):
    record = json.loads((chain / "record.json").read_text())
    assert list(record["stages"]) == ["vision", "base", "aligned", "tuned"]
    for stage in record["stages"].values():
        assert (stage["steps"], stage["examples"]) == (2, 16)
        assert len(stage["curve"]) == 2
    assert record["data"]["digit_items_train"] + record["data"]["digit_items_test"] == 1797
    assert record["device"].startswith("1 x CPU")
    for scores in record["evaluation"].values():
        assert set(scores) == set(SUITES)
        for suite in scores.values():
            assert suite["low"] <= suite["value"] <= suite["high"]
            assert suite["n"] == 10
            assert suite["informative"] in (True, False)


@pytest.mark.slow
@pytest.mark.parametrize("chain", RESUMED, indirect=True)
def test_a_killed_build_resumes_to_the_same_weights(chain, tmp_path, monkeypatch):
    """Killed in the last stage after one of its steps."""
    (tmp_path / "zoo" / "recipes").mkdir(parents=True)
    shutil.copy(chain.parent / "recipes" / "tiny.yml", tmp_path / "zoo" / "recipes")
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    monkeypatch.setattr(zoo, "ITEMS", 10)
    monkeypatch.setattr(train_loop, "SAVE_EVERY", 1)

    def cut(stage, *given, **named):
        for step, batch in enumerate(chat_data.image_rows(stage, *given, **named)):
            if stage == "tuned" and step == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(stages, "image_rows", cut)
    with pytest.raises(KeyboardInterrupt):
        zoo.build("tiny")
    monkeypatch.setattr(stages, "image_rows", chat_data.image_rows)
    assert not (tmp_path / "zoo" / "tiny" / "tuned").exists()
    zoo.build("tiny")
    whole, resumed = (
        load_file(folder / "tuned" / "model.safetensors") for folder in (chain, tmp_path / "zoo" / "tiny")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_of_another_recipe_are_not_taken(chain):
    kept = chain.parent.parent / ".cache" / "zoo" / "tiny"
    (folder,) = kept.iterdir()
    recipe = read_recipe(chain.parent / "recipes" / "tiny.yml")
    assert folder.name == hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    assert {path.stem for path in folder.iterdir()} == {"vision", "base", "aligned", "tuned"}


def test_a_complete_chain_is_not_trained_again(chain, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "ROOT", chain.parent.parent)
    before = (chain / "tuned" / "model.safetensors").stat().st_mtime_ns
    zoo.build("tiny")
    assert "is complete" in capsys.readouterr().out
    assert (chain / "tuned" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_driver_replays_it_in_full_precision(chain):
    vlm = load_vlm(chain)
    assert vlm.model.dtype == torch.float32
    run = vlm.record(**vlm.prepare(["what is there?"], [load_suite("attributes", 1)[0].image]))
    vlm.self_test(run)


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"DEVICE is '?{device}"):
        zoo.start(device)


@pytest.mark.parametrize("path", RECORDS, ids=[path.parent.name for path in RECORDS])
def test_a_chain_in_the_repository_is_its_recipe_s_and_really_works(path):
    record = json.loads(path.read_text())
    assert record["recipe"] == read_recipe(ROOT / "zoo" / "recipes" / f"{record['chain']}.yml").model_dump()
    scores = record["evaluation"]["tuned"]
    missed = {name for name, score in scores.items() if score["value"] < (bars.bar(name) or 0)}
    if bars.mean_of_seeing({name: score["value"] for name, score in scores.items()}) < bars.MEAN:
        missed.add("mean of seeing")
    assert missed == MISSED.get(record["chain"], set())
    assert {name for name, score in scores.items() if not score["informative"]} == AT_CHANCE.get(
        record["chain"], set()
    )


def test_three_chains_read_real_digits():
    tuned = [json.loads(path.read_text())["evaluation"]["tuned"] for path in RECORDS]
    assert sum(scores["digits"]["value"] >= 0.9 for scores in tuned) >= 3


def test_all_chains_together_stay_within_their_size():
    folders = [path.parent for path in RECORDS]
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    assert size <= 60 * 2**20
