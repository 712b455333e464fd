"""load_vlm: what it loads is what transformers loads, and it says what that came from."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import build, tiny_processor
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from vlalign_utils import load_vlm
from vlalign_utils.loading import checkpoint


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (20, 16), (red, 90, 160))


@pytest.fixture
def nothing_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)


@pytest.fixture
def copy(hub_folder: Path, tmp_path: Path) -> Path:
    """A folder of its own, to damage."""
    return Path(shutil.copytree(hub_folder, tmp_path / "copy"))


def test_load_a_folder_as_transformers_does(hub_folder: Path) -> None:
    vlm = load_vlm(hub_folder, device="cpu")
    plain = AutoModelForImageTextToText.from_pretrained(hub_folder).eval()
    inputs = vlm.prepare(["what colour is the shape ?"], images=[picture(30)])
    reference = AutoProcessor.from_pretrained(hub_folder)(
        text="<s> <image> what colour is the shape ? answer : ",
        images=picture(30),
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    assert torch.equal(inputs["pixel_values"], reference["pixel_values"])
    with torch.no_grad():
        logits = plain(**inputs).logits
    assert torch.equal(vlm.record(**inputs).logits, logits)
    assert not vlm.model.training
    assert vlm.model.dtype == torch.float32


@pytest.mark.slow
def test_loading_prints_nothing_that_changes_from_run_to_run(
    hub_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_vlm(hub_folder, device="cpu")
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.slow
def test_what_a_model_came_from_is_noted(hub_folder: Path) -> None:
    source = load_vlm(hub_folder, device="cpu", dtype="bfloat16").source
    assert (source.name, source.revision, source.stage) == (str(hub_folder), None, None)
    assert (source.dtype, source.attention, source.quantization) == ("bfloat16", "sdpa", None)
    assert len(source.fingerprint) == 64
    assert source.base is None


@pytest.mark.slow
def test_load_precision(copy: Path) -> None:
    build("llava")[0].model.bfloat16().save_pretrained(copy)
    assert load_vlm(copy, device="cpu").model.dtype == torch.float32
    assert load_vlm(copy, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_vlm(copy, device="cpu", dtype=torch.float16).model.dtype == torch.float16


@pytest.mark.slow
def test_load_a_stage_of_a_chain(hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("base", "tuned"):
        shutil.copytree(hub_folder, tmp_path / "zoo" / "tiny" / stage)
    weights = load_file(tmp_path / "zoo" / "tiny" / "base" / "model.safetensors")
    changed = {name: weight * 2 for name, weight in weights.items()}
    save_file(changed, tmp_path / "zoo" / "tiny" / "base" / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(tmp_path)
    tuned, base = load_vlm("zoo/tiny", device="cpu"), load_vlm("zoo/tiny", stage="base", device="cpu")
    assert torch.equal(base.model.lm_head.weight, 2 * tuned.model.lm_head.weight)
    assert (tuned.source.stage, base.source.stage) == ("tuned", "base")
    assert tuned.source.fingerprint != base.source.fingerprint
    with pytest.raises(ValueError, match="has no stage 'aligned', it has: base, tuned"):
        load_vlm("zoo/tiny", stage="aligned")
    with pytest.raises(ValueError, match=r"base='x' has no use .* it is a chain with a base of its own"):
        load_vlm("zoo/tiny", stage="base", base="x")
    # From anywhere, a name is looked up in the repository too.
    monkeypatch.chdir("/")
    monkeypatch.setattr(checkpoint, "ROOT", tmp_path)
    assert load_vlm("zoo/tiny", device="cpu").n_layers == 4
    with pytest.raises(FileNotFoundError, match="zoo/other: no such folder"):
        load_vlm("zoo/other")


@pytest.mark.slow
def test_a_single_model_is_its_own_tuned_stage(hub_folder: Path) -> None:
    assert load_vlm(hub_folder, stage="tuned", device="cpu").source.stage == "tuned"


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stage": "aligned"}, ValueError, "stage='aligned': .* is one model"),
        ({"stage": "base"}, ValueError, "records no base language model, pass its hub id or folder"),
        ({"base": "org/base"}, ValueError, "base='org/base' has no use .* it goes with stage=\"base\""),
        ({"base_revision": "v1"}, ValueError, "base_revision='v1' has no use"),
        ({"revision": "main"}, ValueError, "revision='main': .* is a folder"),
        ({"name": "./nowhere"}, FileNotFoundError, "./nowhere: no such folder in"),
        ({"name": "a/b/c"}, FileNotFoundError, "a/b/c: no such folder in"),
    ],
)
def test_wrong_arguments(hub_folder: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_vlm(**{"name": hub_folder, **arguments})


@pytest.mark.usefixtures("nothing_allocated")
def test_a_text_model_is_refused(copy: Path) -> None:
    LlamaConfig().save_pretrained(copy)
    with pytest.raises(ValueError, match=r"is not an image-text-to-text model: .* LlamaConfig"):
        load_vlm(copy)


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "its config.json is not JSON, download it again"),
        ('{"model_type": "future_vl"}', r"transformers \d\S+ has no model type 'future_vl'"),
        ("{}", r"transformers \S+ has no model type None"),
        (
            '{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}',
            "it brings Python code of its own, read that and pass trust_remote_code=True",
        ),
        ('{"model_type": "llava", "text_config": {"model_type": "none"}}', r"its config.json is refused, \S"),
    ],
)
def test_configurations_that_cannot_be_read(copy: Path, config: str, message: str) -> None:
    (copy / "config.json").write_text(config)
    with pytest.raises(ValueError, match=f"copy cannot be loaded: {message}"):
        load_vlm(copy)


@pytest.mark.slow
def test_remote_code_is_off_unless_asked_and_then_warned_about(hub_folder: Path) -> None:
    with pytest.warns(UserWarning, match="runs Python code that comes with"):
        load_vlm(hub_folder, trust_remote_code=True, device="cpu")


def test_the_folder_is_laid_out_as_on_the_hub(hub_folder: Path) -> None:
    files = {path.name for path in hub_folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files
    assert json.loads((hub_folder / "config.json").read_text())["architectures"] == [
        "LlavaForConditionalGeneration"
    ]


# --- a model at hand


def test_a_loaded_model_is_wrapped_as_it_is() -> None:
    model = build("llava")[0].model.train()
    vlm = load_vlm(model, processor=tiny_processor())
    assert vlm.model is model
    assert vlm.model.training
    assert vlm.prepare(["what ?"], images=[picture(0)])["pixel_values"].shape == (1, 3, 16, 16)
    source = vlm.source
    assert (source.name, source.revision, source.fingerprint) == ("LlavaForConditionalGeneration", None, None)
    assert (source.dtype, source.attention) == ("float32", "sdpa")
    assert load_vlm(model).processor is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stage": "base"}, "stage"),
        ({"device": "cpu", "dtype": torch.float16}, "device, dtype"),
        ({"revision": "main", "attn_implementation": "eager"}, "revision, attn_implementation"),
        ({"base": "x", "base_revision": "y"}, "base, base_revision"),
        ({"device_map": "auto", "quantization": "4bit"}, "device_map, quantization"),
        ({"trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_a_loaded_model_cannot_be_loaded_otherwise(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} cannot be applied to a loaded LlavaForConditional"):
        load_vlm(build("llava")[0].model, **arguments)


@pytest.mark.slow
def test_a_processor_of_ones_own(copy: Path) -> None:
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    own = tiny_processor()
    assert load_vlm(copy, device="cpu", processor=own).processor is own


# --- attention


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_load_with_an_attention_implementation(hub_folder: Path, attention: str) -> None:
    vlm = load_vlm(str(hub_folder), attn_implementation=attention, device="cpu")
    assert vlm.layers[0].self_attn.config._attn_implementation == attention
    assert vlm.source.attention == attention


@pytest.mark.slow
def test_attention_does_not_depend_on_where_a_model_was_trained(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["_attn_implementation"] = "flash_attention_2"
    (copy / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO, logger="vlalign"):
        assert load_vlm(copy, device="cpu").source.attention == "sdpa"
    assert "attention is sdpa, the best that its class supports" in caplog.text


# --- spread over devices


LAYERS = "model.language_model.layers."
ON_DISK = {name: "cpu" for name in ("model.vision_tower", "model.multi_modal_projector", "lm_head")}
ON_DISK |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
ON_DISK |= {f"{LAYERS}{k}": "disk" if k in (1, 2) else "cpu" for k in range(4)}


@pytest.mark.slow
@pytest.mark.parametrize("device_map", ["auto", ON_DISK], ids=["auto", "disk"])
def test_a_spread_model_records_and_replays_the_same(hub_folder: Path, device_map: Any) -> None:
    plain, spread = load_vlm(hub_folder, device="cpu"), load_vlm(hub_folder, device_map=device_map)
    if device_map != "auto":
        assert [layer.self_attn.q_proj.weight.is_meta for layer in spread.layers] == [
            False,
            True,
            True,
            False,
        ]
    inputs = plain.prepare(["what colour is the shape ?", "what ?"], images=[picture(0), picture(200)])
    run, same = plain.record(**inputs), spread.record(**inputs)
    assert torch.equal(run.logits, same.logits)
    assert all(torch.equal(a, b) for a, b in zip(run.resid, same.resid, strict=True))
    spread.self_test(same)
    mask, also = plain.image_mask(inputs), spread.image_mask(inputs)
    assert mask is not None
    assert also is not None
    assert torch.equal(mask, also)


@pytest.mark.usefixtures("checks_off")
def test_what_is_no_name_and_a_config_that_is_none_are_refused(hub_folder: Path, tmp_path: Path) -> None:
    for name in (None, 3):
        with pytest.raises(ValueError, match="expected a hub id, a folder or a loaded model"):
            load_vlm(name)  # type: ignore[arg-type]
    copy = tmp_path / "copy"
    shutil.copytree(hub_folder, copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"its config\.json is no mapping"):
        load_vlm(copy, device="cpu")
