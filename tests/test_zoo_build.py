import hashlib
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from vlalign_utils import load_vlm, tasks
from vlalign_utils.data.language import ITALIAN
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo import build as zoo
from vlalign_utils.zoo import pictures, stages, vision
from vlalign_utils.zoo.recipe import STAGES, read_recipe

ENGLISH = {italian: english for english, italian in ITALIAN.items()}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain built by the real code from the real recipe, with three steps a stage and few items."""
    root = tmp_path_factory.mktemp("repo")
    recipe = yaml.safe_load((ROOT / "zoo" / "recipes" / "llava.yml").read_text())
    recipe["pictures"] = {"scenes": 40, "digits": 20}
    for schedule in recipe["stages"].values():
        schedule.update(steps=3, batch_size=8)
    (root / "zoo" / "recipes").mkdir(parents=True)
    (root / "zoo" / "recipes" / "tiny.yml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "ROOT", root)
        patch.setattr(zoo, "ITEMS", 12)
        yield zoo.build("tiny")
    torch.use_deterministic_algorithms(False)


def test_every_stage_is_a_folder_that_plain_transformers_loads_and_asks(chain):
    item = tasks.load("attributes", 1)[0]
    for stage in STAGES:
        model = AutoModelForImageTextToText.from_pretrained(chain / stage)
        processor = AutoProcessor.from_pretrained(chain / stage)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = processor(images=item.image, text=prompt, return_tensors="pt")
        assert (inputs["input_ids"] == processor.tokenizer.image_token_id).sum() == 36
        answer = model.generate(**inputs.to(model.dtype), max_new_tokens=3, do_sample=False)
        assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_stages_train_what_they_say(chain):
    base, aligned, tuned = (load_file(chain / stage / "model.safetensors") for stage in STAGES)
    moved = {
        name.split(".")[0] if "." not in name else name
        for name in base
        if not base[name].equal(aligned[name])
    }
    assert moved
    assert all("multi_modal_projector" in name for name in moved)
    moved = {name for name in base if not aligned[name].equal(tuned[name])}
    assert any("language_model" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)


def test_the_record_holds_curves_sizes_and_scores(chain):
    record = json.loads((chain / "record.json").read_text())
    assert list(record["stages"]) == ["vision", "base", "aligned", "tuned"]
    for stage in record["stages"].values():
        assert (stage["steps"], stage["examples"]) == (3, 24)
        assert len(stage["curve"]) == 3
    assert record["data"]["digit_items_train"] + record["data"]["digit_items_test"] == 1797
    for scores in record["evaluation"].values():
        assert set(scores) == {*tasks.SUITES, "scenes"}
        for name, suite in scores.items():
            assert suite["low"] <= suite["value"] <= suite["high"]
            assert suite["n"] == (36 if name == "scenes" else 12)


def test_checkpoints_of_another_recipe_are_not_taken(chain):
    kept = chain.parent.parent / ".cache" / "zoo" / "tiny"
    (folder,) = kept.iterdir()
    recipe = read_recipe(chain.parent / "recipes" / "tiny.yml")
    assert folder.name == hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    assert {path.stem for path in folder.iterdir()} == {"vision", "base", "aligned", "tuned"}


@pytest.mark.parametrize("path", sorted((ROOT / "zoo").glob("*/record.json")), ids=lambda p: p.parent.name)
def test_a_chain_in_the_repository_is_its_recipe_s_and_really_works(path):
    record = json.loads(path.read_text())
    assert record["recipe"] == read_recipe(ROOT / "zoo" / "recipes" / f"{record['chain']}.yml").model_dump()
    scores = record["evaluation"]["tuned"]
    for name in ("scenes", "digits", "text"):
        assert scores[name]["value"] >= scores[name]["bar"], name
    assert scores["knowledge"]["low"] > scores["knowledge"]["chance"]


def test_a_complete_chain_is_not_trained_again(chain, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "ROOT", chain.parent.parent)
    before = (chain / "tuned" / "model.safetensors").stat().st_mtime_ns
    zoo.build("tiny")
    assert "is complete" in capsys.readouterr().out
    assert (chain / "tuned" / "model.safetensors").stat().st_mtime_ns == before


def test_weights_are_kept_in_half_and_used_in_full_precision(chain):
    stored = load_file(chain / "tuned" / "model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.float16}
    vlm = load_vlm(chain)
    assert vlm.model.dtype == torch.float32
    run = vlm.record(**vlm.prepare(["what is there?"], [tasks.load("attributes", 1)[0].image]))
    vlm.self_test(run)


def test_pixels_in_training_are_those_of_the_processor(chain):
    drawn = pictures.draw_pictures(2, 0, seed=0)
    from PIL import Image

    processed = load_vlm(chain).prepare(["x"] * 2, [Image.fromarray(p) for p in drawn.pixels])["pixel_values"]
    assert torch.allclose(processed, drawn.normalised([0, 1]), atol=1e-6)


def test_a_region_is_its_thing_s_quadrant():
    drawn = pictures.draw_pictures(30, 10, seed=0)
    batch = next(vision.vision_batches(drawn, 8, 8, 1, seed=0))
    assert batch.region_patches.sum(1).tolist() == [9] * (len(batch.match) - 2) + [36] * 2
    for picture, mask in list(zip(batch.region_picture, batch.region_patches, strict=True))[:-2]:
        side = batch.pixels[picture].reshape(3, 6, 8, 6, 8).amax((2, 4))  # brightest pixel of each patch
        assert side.amax(0).flatten()[mask].max() > -0.1  # a thing is brighter than any background
    assert np.unique(batch.region_picture).tolist() == list(range(8))


def test_a_region_matches_the_phrases_about_it_in_both_languages():
    drawn = pictures.draw_pictures(200, 40, seed=0)
    kinds = set()
    for batch in vision.vision_batches(drawn, 8, 64, 6, seed=0):
        assert len(set(batch.phrases)) == len(batch.phrases)
        assert batch.match.any(0).all()
        assert batch.match.any(1).all()
        english = [sorted(ENGLISH.get(w, w) for w in phrase.split()) for phrase in batch.phrases]
        for shown in batch.match:  # all phrases that match a region say the same
            said = [words for words, fits in zip(english, shown.tolist(), strict=True) if fits]
            assert all(words == said[0] for words in said)
        kinds |= {len(words) for words in english}
    assert kinds == {1, 3}


def test_the_first_heads_begin_by_looking_one_and_two_tokens_back():
    recipe = read_recipe(ROOT / "zoo" / "recipes" / "llava.yml")
    config = AutoConfig.for_model(**recipe.text_config, attn_implementation="eager")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    stages.initialise(model, recipe.embedding_std)
    ids = torch.randint(config.vocab_size, (4, 60))
    with torch.no_grad():
        attention = model(input_ids=ids, output_attentions=True).attentions
    for layer in range(len(stages.PREVIOUS)):
        for head, back in enumerate(stages.PREVIOUS):
            looks = attention[layer][:, head].diagonal(-back, 1, 2)[:, 8:].mean()
            assert looks > 0.8
    assert attention[0][:, 2].diagonal(-1, 1, 2)[:, 8:].mean() < 0.2
