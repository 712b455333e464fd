"""The model of pretrained parts: its settings, its turns, and what it allows when it is loaded as a stage."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from vlalign_utils import load_vlm
from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading.parts import LANGUAGE_MODEL, VISION_TOWER, part_folder
from vlalign_utils.loading.stage_file import read_stage, write_stage
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.fast_vlm import fast_vlm
from vlalign_utils.zoo.from_parts import build_config, build_processor, fresh_model
from vlalign_utils.zoo.parts_recipe import PartsRecipe, PartsShell
from vlalign_utils.zoo.recipe import read_any_recipe

pytestmark = pytest.mark.slow
QUESTIONS = ["What is this?", "What is on the left of the big old tree, and how many are there?"]
ANSWERS = ["A palace", "Two daisies and a bee"]
CONNECTOR = "model.multi_modal_projector"


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.fromarray(np.asarray(load_sample_image(name))) for name in ("china.jpg", "flower.jpg")]


@dataclass(frozen=True)
class Chain:
    """A chain's stage `base`, and how its class writes an image."""

    folder: Path
    image: str


def idefics3() -> PartsShell:
    recipe = read_any_recipe(ROOT / "zoo" / "recipes" / "smolvlm.yml")
    assert isinstance(recipe, PartsRecipe)
    assert recipe.shell is not None
    return recipe.shell


@pytest.fixture(scope="module", params=["smollm", "smolvlm"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The language model in FastVLM's class, and in that of smolvlm, whose tower knows nothing yet."""
    folder = tmp_path_factory.mktemp("zoo") / request.param
    if request.param == "smollm":
        shell, image = fast_vlm(), "<empty_output>" * 25
    else:
        around = "<fake_token_around_image>"
        shell, image = idefics3(), f"{around}<global-img>{'<image>' * 25}{around}"
    model, processor = fresh_model(0, shell=shell), build_processor(shell)
    write_stage(folder / "base", model, processor, shell.parts, seed=0, tokens=shell.tokens)
    return Chain(folder, image)


def test_what_was_written_before_is_written_again(tmp_path: Path) -> None:
    """The settings of the committed stage, byte by byte: what was trained from it stays what it was."""
    write_stage(tmp_path / "base", fresh_model(0), build_processor(), fast_vlm().parts, seed=0)
    committed, again = read_stage(ROOT / "zoo" / "smollm" / "base"), read_stage(tmp_path / "base")
    assert again == committed.model_copy(update={"weights": {}})


def test_the_parts_compute_what_they_did(images: list[Image.Image]) -> None:
    model: Any = fresh_model(0)
    inputs = build_processor()(text=["<empty_output>"] * 2, images=images, return_tensors="pt")
    with without_messages():
        tower: Any = AutoModel.from_pretrained(part_folder(VISION_TOWER.name), dtype=torch.float32).eval()
        language: Any = AutoModelForCausalLM.from_pretrained(
            part_folder(LANGUAGE_MODEL.name), dtype=torch.float32
        )
    ids = torch.tensor([list(range(40, 60))])
    with torch.no_grad():
        features = tower(inputs["pixel_values"]).last_hidden_state
        assert features.shape == (2, 1280, 5, 5)
        connected = model.model.multi_modal_projector(features.flatten(2).transpose(1, 2))
        assert torch.equal(model.get_image_features(inputs["pixel_values"]).pooler_output, connected)
        assert torch.equal(model(input_ids=ids).logits, language(input_ids=ids).logits)
    assert 0.5 < connected.std() / model.get_input_embeddings().weight.std() < 4


def test_the_connector_is_the_seeds_alone() -> None:
    def digest(seed: int) -> str:
        state = fresh_model(seed).state_dict()
        held = b"".join(state[k].numpy().tobytes() for k in sorted(state) if k.startswith(CONNECTOR))
        return hashlib.sha256(held).hexdigest()[:16]

    assert [digest(0), digest(1)] == ["04184e0e4b4f9fa2", "7f1565fee29b1eef"]


def test_files_of_weights_replace_those_of_parts(tmp_path: Path) -> None:
    name = "model.vision_tower.timm_model.bn2.bias"
    save_file({name: torch.full((1280,), 0.5)}, tmp_path / "tower.safetensors")
    model = fresh_model(0, torch.bfloat16, [tmp_path / "tower.safetensors"])
    assert torch.equal(model.state_dict()[name], torch.full((1280,), 0.5, dtype=torch.bfloat16))
    assert model.dtype == torch.bfloat16


def test_turns_are_those_of_the_language_model_without_its_system_prompt() -> None:
    own, ours = AutoTokenizer.from_pretrained(part_folder(LANGUAGE_MODEL.name)), build_processor()
    asked = [{"role": "user", "content": "Hi"}]
    for chat in (asked, [*asked, {"role": "assistant", "content": "Ho"}]):
        for prompted in (False, True):
            whole = own.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompted)
            system, _, rest = whole.partition("<|im_end|>\n")
            assert system.startswith("<|im_start|>system\n")
            parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
            for form in (chat, parts):
                written = ours.apply_chat_template(form, tokenize=False, add_generation_prompt=prompted)
                assert written == rest


def test_other_sizes_of_images(images: list[Image.Image]) -> None:
    processor: Any = build_processor(fast_vlm(224))
    config: Any = build_config(fast_vlm(224))
    inputs = processor(text=["<empty_output>?"], images=images[:1], return_tensors="pt")
    assert (inputs["input_ids"] == 16).sum() == config.image_seq_length == 49
    with pytest.raises(ValueError, match="pixels is 150, expected a multiple of 32"):
        fast_vlm(150)


def test_no_row_is_added_to_the_vocabulary(images: list[Image.Image]) -> None:
    processor: Any = build_processor(idefics3())
    config: Any = build_config(idefics3())
    assert len(processor.tokenizer) == config.text_config.vocab_size == 49152
    own = AutoTokenizer.from_pretrained(part_folder(LANGUAGE_MODEL.name))
    for name, spare in idefics3().tokens.items():
        assert processor.tokenizer.convert_tokens_to_ids(name) == own.convert_tokens_to_ids(spare)
    text = "Two daisies, 17 bees: a café."
    assert processor.tokenizer(text).input_ids == own(text).input_ids
    inputs = processor(text=["<image>?"], images=[images[:1]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 3, 160, 160)
    squared = np.asarray(images[0].resize((160, 160), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    torch.testing.assert_close(
        inputs["pixel_values"][0, 0], torch.from_numpy(squared / 127.5 - 1).float(), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_in_use(chain: Chain, images: list[Image.Image], dtype: str) -> None:
    vlm = load_vlm(chain.folder, "base", dtype=dtype)
    assert (vlm.n_layers, vlm.d_model, vlm.source.stage) == (30, 576, "base")
    findings = vlm.capabilities().findings()
    refused = {name for name, finding in findings.items() if not finding.works}
    # In half precision the rows of a batch may be rounded otherwise than one alone.
    assert refused - ({"rows"} if dtype == "bfloat16" else set()) == {"cross_off"}
    inputs = vlm.prepare(QUESTIONS, images, ANSWERS)
    texts = vlm.tokenizer.batch_decode(inputs["input_ids"])
    for text, question, answer in zip(texts, QUESTIONS, ANSWERS, strict=True):
        turn = f"{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        padding, begun, rest = text.partition("<|im_start|>user\n")
        assert (padding.replace("<|im_end|>", ""), begun + rest) == ("", begun + chain.image + turn)
    mask = vlm.image_mask(inputs)
    assert torch.equal(mask, inputs["input_ids"] == 16)
    assert mask.sum(1).tolist() == [25, 25]
    run = vlm.record(**inputs)
    vlm.self_test(run)
    for start in (0, 15, 29):
        assert torch.equal(vlm.replay(run, start=start).logits, run.logits)

    asked = vlm.prepare(["What is the capital of France?"])
    said = vlm.model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert vlm.tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"
    seen = vlm.prepare(QUESTIONS[:1], images[:1])
    assert vlm.model.generate(**seen, max_new_tokens=3, do_sample=False).shape[1] > seen["input_ids"].shape[1]
