"""Untrained models of five families, each from its recipe alone, behave as hub models do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from vlalign_utils import VLM, load_vlm
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.architecture import (
    build_model,
    build_processor,
    build_tokenizer_for,
    connector,
    image_features,
    save,
    vision_tower,
)
from vlalign_utils.zoo.recipe import Recipe, read_recipe

FAMILIES = ("llava", "qwen3vl", "gemma3", "idefics3", "mllama")
SIDE, GRID = 48, 6  # pixels, tokens
pytestmark = [pytest.mark.slow_except("llava"), pytest.mark.xdist_group("architecture")]


def recipe_of(family: str) -> Recipe:
    return read_recipe(ROOT / "zoo" / "recipes" / f"{family}.yml")


def noise(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(values)


class Saved:
    """A family's recipe, its model as built, and the same saved and loaded again."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder, self.recipe = family, folder, recipe_of(family)
        tokenizer = build_tokenizer_for(self.recipe)
        self.vocabulary = len(tokenizer)
        self.processor: Any = build_processor(self.recipe, tokenizer)
        self.model = build_model(self.recipe, tokenizer, seed=0)
        save(self.model, self.processor, folder)
        self.vlm: VLM = load_vlm(folder, device="cpu")

    def inputs(self) -> dict[str, Any]:
        return self.vlm.prepare(["what is there?"] * 2, [noise(0), noise(1)], ["red", "small star"])


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(request.param, tmp_path_factory.mktemp(request.param) / "base")


def test_a_saved_model_is_driven_exactly(saved: Saved) -> None:
    inputs = saved.inputs()
    run = saved.vlm.record(**inputs)
    saved.vlm.self_test(run)
    mask = saved.vlm.image_mask(inputs, run)
    if saved.family == "mllama":
        assert mask is None
    else:
        assert mask is not None
        assert mask.sum(1).tolist() == [GRID**2] * 2
        assert torch.equal(saved.vlm.pixel_mask(inputs, run), mask)


@pytest.mark.slow
def test_text_alone_needs_no_image(saved: Saved) -> None:
    inputs: dict[str, Any] = saved.vlm.prepare(["what is there?"] * 2, answers=["red", "small star"])
    run = saved.vlm.record(**inputs)
    saved.vlm.self_test(run)
    assert run.logits.isfinite().all()


def test_transformers_loads_it_whole(saved: Saved) -> None:
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        saved.folder, dtype="auto", output_loading_info=True
    )
    model, report = loaded
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    built = saved.model.state_dict()
    assert all(torch.equal(weight, built[name].half().float()) for name, weight in model.state_dict().items())
    assert {weight.dtype for weight in load_file(saved.folder / "model.safetensors").values()} == {
        torch.float16
    }


def test_the_processor_comes_back_with_all_its_parts(saved: Saved) -> None:
    found: Any = AutoProcessor.from_pretrained(saved.folder)
    parts = saved.processor.get_attributes()
    assert ("video_processor" in parts) == (saved.family == "qwen3vl")
    for name in parts:
        assert type(getattr(found, name)) is type(getattr(saved.processor, name))
    given = {"text": [f"{saved.recipe.image_text} red"], "images": [[noise(0)]], "return_tensors": "pt"}
    expected, inputs = saved.processor(**given), found(**given)
    assert set(inputs) == set(expected)
    assert all(torch.equal(inputs[name], value) for name, value in expected.items())


def test_the_tokenizer_decides_ids(saved: Saved) -> None:
    config, tokenizer = saved.vlm.model.config, saved.vlm.tokenizer
    image = next(value for name, value in saved.recipe.model.items() if name.startswith("image_token_"))
    assert tokenizer.convert_tokens_to_ids(image) == config.image_token_id
    assert config.get_text_config().vocab_size == len(tokenizer) == saved.vocabulary
    for holder in (config.get_text_config(), saved.vlm.model.generation_config):
        ids = (holder.pad_token_id, holder.bos_token_id, holder.eos_token_id)
        assert ids == (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_what_is_written_reads_back(saved: Saved) -> None:
    tokenizer = saved.vlm.tokenizer
    inputs = saved.inputs()
    # Nothing in the turn is unknown, which would read as padding.
    assert torch.equal(inputs["input_ids"] == tokenizer.pad_token_id, inputs["attention_mask"] == 0)
    text = tokenizer.decode(inputs["input_ids"][1])
    assert text.startswith("<s><ask>")
    assert text.endswith(" what is there?<answer> small star</s>")


def test_features_are_a_grid_read_row_by_row(saved: Saved) -> None:
    model, pixels = saved.vlm.model, saved.inputs()
    with torch.no_grad():
        assert image_features(model, saved.recipe, pixels).shape == (2, GRID**2, saved.vlm.d_model)
        before = features_of(saved, noise(0))
        for row, column in ((0, 0), (0, 5), (1, 4), (4, 1), (5, 5)):
            changed = np.array(noise(0))
            size = SIDE // GRID
            block = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
            changed[block] = 255 - changed[block]
            moved = (features_of(saved, Image.fromarray(changed)) - before).norm(dim=-1)
            assert moved.argmax().item() == row * GRID + column


def features_of(saved: Saved, image: Image.Image) -> Tensor:
    pixels = saved.vlm.prepare(["what is there?"], [image])
    return image_features(saved.vlm.model, saved.recipe, pixels)[0]


def test_gradients_reach_the_connector_and_the_tower(saved: Saved) -> None:
    model: PreTrainedModel = saved.model
    logits = model(**saved.inputs(), use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, -2], torch.tensor([7, 8])).backward()
    parts = connector(model, saved.recipe)
    weights = [weight for part in parts for weight in part.parameters()]
    tower = next(vision_tower(model, saved.recipe).parameters())
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in [*weights, tower])
    model.zero_grad(set_to_none=True)


def test_right_padding_changes_nothing(saved: Saved) -> None:
    """Training batches: the same call for every processor."""
    turns = [
        f"<s><ask>{saved.recipe.image_text}{text}</s>"
        for text in ("what is there?<answer>red", "what is there?<answer>small star")
    ]
    whole, alone = (
        saved.vlm.processor(
            text=turns[:n],
            images=[[noise(i)] for i in range(n)],
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        )
        for n in (2, 1)
    )
    known = saved.vlm.anatomy.input_names()
    with torch.no_grad():
        logits = [
            saved.vlm.model(**{k: v for k, v in batch.items() if k in known}).logits[0]
            for batch in (whole, alone)
        ]
    assert len(logits[1]) < len(logits[0])
    torch.testing.assert_close(logits[0][: len(logits[1])], logits[1], rtol=1e-4, atol=1e-4)


def test_one_seed_one_model() -> None:
    recipe = recipe_of("gemma3")
    tokenizer = build_tokenizer_for(recipe)
    first, again, other = (build_model(recipe, tokenizer, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_llava_keeps_the_tokenizer_of_the_world() -> None:
    own = build_tokenizer_for(recipe_of("llava"))
    assert own.get_vocab() == build_tokenizer().get_vocab()
    assert own.chat_template == build_tokenizer().chat_template


def test_a_pattern_without_a_match_is_refused() -> None:
    recipe = recipe_of("llava")
    tokenizer = build_tokenizer_for(recipe)
    with pytest.raises(ValueError, match="no module of LlavaForConditionalGeneration matches 'visual'"):
        build_model(recipe.model_copy(update={"connector": ["visual"]}), tokenizer, seed=0)
    with pytest.raises(ValueError, match="start: no parameter of LlavaForConditionalGeneration matches"):
        build_model(recipe.model_copy(update={"start": {"gate": 1.0}}), tokenizer, seed=0)


def test_features_that_are_no_square_grid_are_refused():
    recipe = recipe_of("llava")
    model = build_model(recipe, build_tokenizer_for(recipe), seed=0)
    model.get_image_features = lambda pixel_values: torch.zeros(2, 39, 8)
    with pytest.raises(ValueError, match="39 features of an image"):
        image_features(model, recipe, {"pixel_values": torch.zeros(2, 3, 48, 48)})
