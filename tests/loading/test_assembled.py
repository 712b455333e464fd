"""Assembled models: parts, what is drawn, what was trained and LoRA in one plain folder, built once."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, tiny_processor
from tiny_parts import (
    CONNECTOR,
    LANGUAGE,
    MADE_OF,
    TOWER,
    connector,
    language_weights,
    tower_weights,
    write,
)
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlalign_utils import load_vlm
from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading import assembled, parts
from vlalign_utils.loading.assembled import assemble, plain_folder, whole
from vlalign_utils.loading.checkpoint import locate
from vlalign_utils.loading.parts import PARTS, part_folder
from vlalign_utils.loading.stage_file import STAGE, Lora, Source, Stage

pytestmark = pytest.mark.usefixtures("tiny_parts")
Q = "model.language_model.layers.1.self_attn.q_proj"


def assembled_weights(stage: Stage, folder: Path = Path()) -> dict[str, Tensor]:
    model: Any = build("llava")[0].model
    return assemble(model.config, stage, folder)


@pytest.fixture
def low_rank() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        f"{Q}.lora_A.weight": torch.randn(2, 32, generator=random),
        f"{Q}.lora_B.weight": torch.randn(32, 2, generator=random),
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)


def test_every_weight_of_the_parts_and_nothing_else_of_them() -> None:
    found = assembled_weights(Stage(parts=MADE_OF, seed=0))
    model: Any = build("llava")[0].model
    assert {name: w.shape for name, w in found.items()} == {
        name: w.shape for name, w in model.state_dict().items()
    }
    language, tower = language_weights(), tower_weights()
    for name, weight in found.items():
        if CONNECTOR not in name:
            inner = name.removeprefix("model.").replace("vision_tower.", "tower.")
            source = language | tower
            assert torch.equal(weight, source[inner.replace("language_model.", "model.")]), name


def test_what_has_no_source_is_drawn_from_the_seed_as_its_class_draws_it() -> None:
    for part in (LANGUAGE, TOWER):
        part_folder(part)  # converted once, which here draws the weights
    before = torch.get_rng_state()
    found = assembled_weights(Stage(parts=MADE_OF, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first, second = nn.Linear(16, 32), nn.Linear(32, 32)
    for name, layer in (("linear_1", first), ("linear_2", second)):
        for part, value in layer.named_parameters():
            assert torch.equal(found[f"{CONNECTOR}.{name}.{part}"], value.to(torch.bfloat16))
    again = assembled_weights(Stage(parts=MADE_OF, seed=5))
    other = assembled_weights(Stage(parts=MADE_OF, seed=6))
    assert same(found, again)
    assert not torch.equal(found[f"{CONNECTOR}.linear_1.weight"], other[f"{CONNECTOR}.linear_1.weight"])


def test_a_file_replaces_parts_and_draws(tmp_path: Path) -> None:
    bias = "model.vision_tower.post_layernorm.bias"
    trained = {**connector(0.25), bias: torch.full((16,), 0.5)}
    save_file(trained, tmp_path / "trained.safetensors")
    found = assembled_weights(Stage(parts=MADE_OF, weights={"trained.safetensors": ""}), tmp_path)
    for name, value in trained.items():
        assert torch.equal(found[name].float(), value)


def test_low_rank_matrices_are_added_in_float32(tmp_path: Path, low_rank: dict[str, Tensor]) -> None:
    folder = write(tmp_path / "tuned", lora=low_rank, alpha=3.0, seed=0)
    found = load_file(plain_folder(folder) / "model.safetensors")
    before = load_file(plain_folder(write(tmp_path / "base", seed=0)) / "model.safetensors")
    a, b = (low_rank[f"{Q}.lora_{x}.weight"].to(torch.bfloat16).double() for x in "AB")
    x = torch.randn(32, dtype=torch.float64)
    expected = before[f"{Q}.weight"].double() @ x + 3.0 / 2 * (b @ (a @ x))
    torch.testing.assert_close(found[f"{Q}.weight"].double() @ x, expected, rtol=1e-2, atol=5e-2)
    rounded = (before[f"{Q}.weight"].float() + 1.5 * (b @ a).float()).to(torch.bfloat16)
    assert torch.equal(found[f"{Q}.weight"], rounded)
    assert {name for name in found if not torch.equal(found[name], before[name])} == {f"{Q}.weight"}


def test_tied_weights_count_once(tmp_path: Path) -> None:
    model: Any = build("llava")[0].model
    config = type(model.config).from_dict(model.config.to_dict() | {"tie_word_embeddings": True})
    tied = {name: source for name, source in MADE_OF.items() if name != "lm_head"}
    found = assemble(config, Stage(parts=tied, seed=0), tmp_path)
    assert "lm_head.weight" not in found
    assert "model.language_model.embed_tokens.weight" in found


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file holds .*linear_1.bias, and there is no seed to draw"):
        assembled_weights(Stage(parts=MADE_OF))
    wrong = MADE_OF | {"model.vision_tower": Source(part=LANGUAGE, module="model")}
    with pytest.raises(ValueError, match=r"tiny-language has no weight model\..* for model.vision_tower"):
        assembled_weights(Stage(parts=wrong, seed=0))
    for name, message in (
        ("model.connector.bias", "LlavaForConditionalGeneration has no weight model.connector.bias"),
        (f"{CONNECTOR}.linear_1.bias", r"linear_1\.bias is \[3\], LlavaFor.* has \[32\]"),
    ):
        save_file({name: torch.zeros(3)}, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match=message):
            assembled_weights(Stage(parts=MADE_OF, weights={"odd.safetensors": ""}, seed=0), tmp_path)


def test_low_rank_matrices_that_fit_nothing_are_refused(tmp_path: Path, low_rank: dict[str, Tensor]) -> None:
    alone = {name: matrix for name, matrix in low_rank.items() if ".lora_A." not in name}
    moved = {name.replace("q_proj", "z_proj"): matrix for name, matrix in low_rank.items()}
    for matrices, message in (
        (alone, r"l\.safetensors: there is no matrix .*lora_A\.weight"),
        (moved, r"l\.safetensors: the model has no weight .*z_proj\.weight to add to"),
    ):
        save_file(matrices, tmp_path / "l.safetensors")
        stage = Stage(parts=MADE_OF, seed=0, lora=Lora(file="l.safetensors", sha256="", rank=2, alpha=1.0))
        with pytest.raises(ValueError, match=message):
            assembled_weights(stage, tmp_path)


@pytest.mark.slow
def test_transformers_loads_it(tmp_path: Path) -> None:
    stage = write(tmp_path / "zoo" / "tiny" / "base", seed=0)
    folder = plain_folder(stage)
    with without_messages():
        model: Any = AutoModelForImageTextToText.from_pretrained(folder)
        processor: Any = AutoProcessor.from_pretrained(folder)
    expected = assembled_weights(Stage(parts=MADE_OF, seed=0))
    assert model.dtype == torch.float32
    assert same(model.state_dict(), {name: weight.float() for name, weight in expected.items()})
    assert processor.chat_template == tiny_processor().chat_template
    assert processor.tokenizer.get_vocab() == tiny_processor().tokenizer.get_vocab()


@pytest.mark.slow
def with_template(stage: Path, template: str) -> None:
    """Give a stage another chat template, and its stage.json the hash of it."""
    (stage / "chat_template.jinja").write_text(template)
    made_of = json.loads((stage / STAGE).read_bytes())
    made_of["settings"]["chat_template.jinja"] = hashlib.sha256(template.encode()).hexdigest()
    (stage / STAGE).write_text(json.dumps(made_of))


def test_it_is_built_once_and_again_when_anything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = write(tmp_path / "tiny" / "base", seed=0)
    seen = {plain_folder(stage)}
    with monkeypatch.context() as patch:
        patch.setattr(assembled, "assemble", lambda *_: pytest.fail("built again"))
        assert plain_folder(stage) in seen
    changes: list[Any] = [
        lambda: write(stage, seed=1),
        lambda: write(stage, weights={"connector.safetensors": connector(0.5)}),
        lambda: with_template(stage, "{{ messages }}"),
        lambda: monkeypatch.setitem(PARTS, TOWER, replace(PARTS[TOWER], sha256="another")),
        lambda: monkeypatch.setattr(parts, "FORMAT", parts.FORMAT + 1),
        lambda: monkeypatch.setattr(assembled, "FORMAT", assembled.FORMAT + 1),
    ]
    for number, change in enumerate(changes, 2):
        change()
        seen.add(plain_folder(stage))
        assert len(seen) == number


def test_a_checkpoint_that_is_plain_stays_as_it_is(hub_folder: Path, tmp_path: Path) -> None:
    plain = locate(hub_folder)
    assert whole(plain) is plain
    stage = locate(write(tmp_path / "zoo" / "tiny" / "tuned", seed=0).parent)
    found = whole(stage)
    assert (found.name, found.stage, found.in_chain) == (stage.name, "tuned", True)
    assert found.folder == plain_folder(tmp_path / "zoo" / "tiny" / "tuned")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= found.files


@pytest.mark.slow
def test_a_chain_of_stages_is_loaded_like_any_other(tmp_path: Path) -> None:
    write(tmp_path / "chain" / "base", seed=0)
    write(tmp_path / "chain" / "tuned", weights={"connector.safetensors": connector(0.1)})
    loaded = {stage: load_vlm(tmp_path / "chain", stage) for stage in ("base", "tuned")}
    assert load_vlm(tmp_path / "chain").source == loaded["tuned"].source
    for stage, vlm in loaded.items():
        assert vlm.source.name == str(tmp_path / "chain" / stage)
    assert len({vlm.source.fingerprint for vlm in loaded.values()}) == 2
    model: Any = loaded["tuned"].model
    bias = model.get_submodule(CONNECTOR).linear_1.bias.detach()
    assert torch.equal(bias, torch.full_like(bias, 0.1).to(torch.bfloat16).float())


def test_without_a_package_only_what_is_made_of_it_fails(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(parts, "CACHE", tmp_path / "empty")
    monkeypatch.setitem(PARTS, LANGUAGE, replace(PARTS["smollm2-135m-instruct"], package="none", sha256="-"))
    monkeypatch.setitem(PARTS, TOWER, PARTS[LANGUAGE])
    stage = write(tmp_path / "chain" / "tuned", seed=0)
    with pytest.raises(
        ValueError, match=r"is a file of the package none 0\.1\.2, which is missing: run make"
    ):
        load_vlm(stage)
    assert whole(locate(hub_folder)).folder == hub_folder
