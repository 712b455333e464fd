"""Finding the parts of a model, preparing inputs, and loading checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, IMAGE, build, each_family, tiny_processor
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from vlalign_utils import VLM, checkpoints, load_vlm


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (20, 16), (red, 90, 160))


# --- parts


@each_family
def test_the_decoder_layers_are_found(family: str) -> None:
    vlm, inputs = build(family)
    assert (vlm.n_layers, vlm.d_model, vlm.device) == (4, 32, torch.device("cpu"))
    assert not any("Vision" in type(layer).__name__ for layer in vlm.layers)
    assert vlm.record(**inputs).resid[0].shape == (2, 14, 32)


def test_discovery_needs_no_weights() -> None:
    config, model_class, _ = FAMILIES["qwen3_vl"]()
    with torch.device("meta"):
        assert VLM(model_class(config)).n_layers == 4


def test_a_model_without_one_decoder_is_refused() -> None:
    vlm, _ = build("llava")
    vlm.model.config.text_config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"expected one list of 5 decoder layers .*, found none"):
        VLM(vlm.model)
    vlm.model.config.text_config.num_hidden_layers = 4
    vlm.model.model.language_model.more = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(ValueError, match=r"found \['layers', 'more'\]"):
        VLM(vlm.model)


def test_as_many_experts_as_layers_do_not_confuse() -> None:
    vlm, _ = build("llava")
    vlm.layers[0].experts = nn.ModuleList(nn.Identity() for _ in range(4))
    assert VLM(vlm.model).anatomy.name == "model.language_model.layers"


@each_family
def test_image_mask_declared_and_found_by_changing_pixels(family: str) -> None:
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    state = torch.get_rng_state()
    mask, found = vlm.image_mask(inputs), vlm.pixel_mask(inputs, run)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, vlm.pixel_mask(inputs))
    if family in ("mllama", "idefics"):  # cross-attention: pixels never occupy positions
        assert mask is None
        assert vlm.image_mask(inputs, run) is None
        assert not found.any()
    else:
        assert mask is not None
        assert torch.equal(mask, inputs["input_ids"] == IMAGE)
        assert torch.equal(found, mask)


@pytest.mark.parametrize("declared", [None, 5])
def test_image_mask_where_the_declared_id_is_missing_or_wrong(declared: int | None) -> None:
    vlm, inputs = build("llava")
    config = vlm.model.config
    vlm = VLM(vlm.model)
    vlm._image_ids = [] if declared is None else [declared]
    for _ in range(2):
        mask = vlm.image_mask(inputs)
        assert mask is not None
        assert torch.equal(mask, inputs["input_ids"] == config.image_token_id)


def test_image_mask_keeps_declared_positions_that_pixels_do_not_reach() -> None:
    """Such as the newlines of llava_next: part of the image, the same for every image."""
    vlm, inputs = build("llava")
    newline = int(inputs["input_ids"][0, 9])
    vlm._image_ids = [newline, IMAGE]
    mask = vlm.image_mask(inputs)
    assert mask is not None
    assert mask[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 9]


def test_image_mask_holds_before_the_connector_is_trained() -> None:
    vlm, inputs = build("llava")
    for weight in vlm.model.model.multi_modal_projector.parameters():
        weight.data.zero_()
    mask = vlm.image_mask(inputs)
    assert mask is not None
    assert torch.equal(mask, inputs["input_ids"] == IMAGE)


def test_image_mask_of_text_alone_is_empty() -> None:
    vlm, inputs = build("llava")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    mask = vlm.image_mask({**text, "input_ids": text["input_ids"].clamp(max=50)})
    assert mask is not None
    assert mask.shape == (2, 14)
    assert not mask.any()


# --- prepare


def test_prepare_pads_left_and_places_one_image_per_prompt() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    prompts = ["what colour is the shape ?", "what ?"]
    inputs = vlm.prepare(prompts, images=[picture(0), picture(250)])
    text = vlm.tokenizer.batch_decode(inputs["input_ids"])
    image = "<image> " * 4
    assert text[0] == f"<s> {image}what colour is the shape ? answer :"
    assert text[1] == "<pad> " * 4 + f"<s> {image}what ? answer :"
    assert inputs["attention_mask"].sum(1).tolist() == [13, 9]
    assert inputs["attention_mask"][1, :4].sum() == 0
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    run = vlm.record(**inputs)
    vlm.self_test(run)
    alone = vlm.record(**vlm.prepare(prompts[1:], images=[picture(250)]))
    torch.testing.assert_close(run.logits[1, 4:], alone.logits[0], rtol=1e-4, atol=1e-4)


def test_prepare_appends_answers_and_follows_the_models_precision() -> None:
    vlm = VLM(build("llava")[0].model.bfloat16(), tiny_processor())
    inputs = vlm.prepare(["what ?"], images=[picture(0)], answers=["red"])
    assert vlm.tokenizer.decode(inputs["input_ids"][0]).endswith("answer : red </s>")
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.long
    text_only = vlm.prepare(["what ?"])
    assert vlm.tokenizer.decode(text_only["input_ids"][0]) == "<s> what ? answer :"
    assert "pixel_values" not in text_only


def test_prepare_says_what_is_wrong() -> None:
    model = build("llava")[0].model
    with pytest.raises(ValueError, match="has no processor"):
        VLM(model).prepare(["what ?"])
    vlm = VLM(model, tiny_processor())
    with pytest.raises(ValueError, match="2 prompts but 1 images"):
        vlm.prepare(["what ?", "is ?"], images=[picture(0)])
    with pytest.raises(ValueError, match="1 prompts but 0 answers"):
        vlm.prepare(["what ?"], answers=[])
    with pytest.raises(ValueError, match="prompts is empty"):
        vlm.prepare([])
    vlm.processor.chat_template = None
    with pytest.raises(ValueError, match="has a chat template"):
        vlm.prepare(["what ?"])


# --- load_vlm


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


def test_loading_prints_nothing_that_changes_from_run_to_run(
    hub_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_vlm(hub_folder, device="cpu")
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_load_with_an_attention_implementation(hub_folder: Path, attention: str) -> None:
    vlm = load_vlm(str(hub_folder), attn_implementation=attention, device="cpu")
    assert vlm.layers[0].self_attn.config._attn_implementation == attention


def test_load_precision(copy: Path) -> None:
    build("llava")[0].model.bfloat16().save_pretrained(copy)
    assert load_vlm(copy, device="cpu").model.dtype == torch.float32
    assert load_vlm(copy, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_vlm(copy, device="cpu", dtype=torch.float16).model.dtype == torch.float16


def test_load_a_stage_of_a_chain(hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("base", "tuned"):
        shutil.copytree(hub_folder, tmp_path / "zoo" / "tiny" / stage)
    weights = load_file(tmp_path / "zoo" / "tiny" / "base" / "model.safetensors")
    changed = {name: weight * 2 for name, weight in weights.items()}
    save_file(changed, tmp_path / "zoo" / "tiny" / "base" / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(tmp_path)
    tuned, base = load_vlm("zoo/tiny", device="cpu"), load_vlm("zoo/tiny", stage="base", device="cpu")
    assert torch.equal(base.model.lm_head.weight, 2 * tuned.model.lm_head.weight)
    with pytest.raises(ValueError, match="has no stage 'aligned', it has: base, tuned"):
        load_vlm("zoo/tiny", stage="aligned")
    with pytest.raises(ValueError, match="is one model, not a chain"):
        load_vlm("zoo/tiny/base", stage="base")
    # From anywhere, a name is looked up in the repository too.
    monkeypatch.chdir("/")
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    assert load_vlm("zoo/tiny", device="cpu").n_layers == 4
    with pytest.raises(FileNotFoundError, match="zoo/other: no such folder"):
        load_vlm("zoo/other")


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, "device='gpu', expected auto, cpu, cuda"),
        ({"device": "cuda:99"}, ValueError, "device='cuda:99' is not available here, only .*cpu"),
        ({"dtype": "float8"}, ValueError, "dtype='float8', expected auto, float32, bfloat16, float16"),
        ({"dtype": torch.int64}, ValueError, "dtype=torch.int64, expected auto"),
        (
            {"attn_implementation": "fast"},
            ValueError,
            "attn_implementation='fast', expected one of eager, sdpa",
        ),
        ({"stage": "base"}, ValueError, "stage='base': .* is one model"),
        ({"revision": "main"}, ValueError, "revision='main': .* is a folder"),
        ({"name": "./nowhere"}, FileNotFoundError, "./nowhere: no such folder in"),
        ({"name": "a/b/c"}, FileNotFoundError, "a/b/c: no such folder in"),
    ],
)
def test_wrong_arguments(hub_folder: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_vlm(**{"name": hub_folder, **arguments})


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], "has no stage 'tuned', it has: none"),
        (["model.safetensors"], "no safetensors weights; pickled weights are not loaded"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["processor_config.json"], "has no image processor"),
    ],
)
def test_incomplete_folders(copy: Path, missing: list[str], message: str) -> None:
    for name in missing:
        (copy / name).unlink()
    (copy / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=message):
        load_vlm(copy)


@pytest.mark.usefixtures("nothing_allocated")
def test_a_text_model_is_refused(copy: Path) -> None:
    LlamaConfig().save_pretrained(copy)
    with pytest.raises(ValueError, match=r"is not an image-text-to-text model: .* LlamaConfig"):
        load_vlm(copy)


def test_missing_weights_are_never_drawn_at_random(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight" if "lm_head.weight" in weights else "language_model.lm_head.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of LlavaForConditionalGeneration, lm_head.weight first"
    ):
        load_vlm(copy, device="cpu")


def test_remote_code_is_off_unless_asked_and_then_warned_about(hub_folder: Path) -> None:
    with pytest.warns(UserWarning, match="runs Python code that comes with"):
        load_vlm(hub_folder, trust_remote_code=True, device="cpu")


class FakeHub:
    """Answers list_repo_files with a list, or an error, without a network."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, name: str, revision: str | None = None) -> list[str]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return list(self.answer)


def hub_error(kind: type) -> Exception:
    error = kind.__new__(kind)  # its constructor wants an HTTP response
    Exception.__init__(error, "from the hub")
    return error


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


@pytest.mark.usefixtures("nothing_allocated", "no_cache")
@pytest.mark.parametrize(
    ("answer", "arguments", "message"),
    [
        (hub_error(RepositoryNotFoundError), {}, "neither a folder here nor a model on the hub"),
        (hub_error(GatedRepoError), {}, "org/model is gated: accept its licence"),
        (hub_error(RevisionNotFoundError), {"revision": "v9"}, "org/model has no revision 'v9'"),
        (ConnectionError("down"), {}, "not a folder here, and the hub cannot be reached"),
        ([], {"stage": "base"}, "only a folder can hold a chain"),
        (["README.md"], {}, "has no config.json"),
        (["config.json", "pytorch_model.bin"], {}, "no safetensors weights"),
        (["config.json", "a.safetensors"], {}, "has no tokenizer"),
        (["config.json", "a.safetensors", "tokenizer.json"], {}, "has no image processor"),
    ],
)
def test_hub_errors_come_before_any_download(
    monkeypatch: pytest.MonkeyPatch, answer: Any, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(checkpoints, "list_repo_files", FakeHub(answer))
    with pytest.raises(ValueError, match=message):
        load_vlm("org/model", **arguments)


def test_a_cached_hub_model_loads_without_a_network(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "list_repo_files", FakeHub(ConnectionError("down")))
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda name, **kwargs: str(hub_folder))
    assert load_vlm("org/model", device="cpu").n_layers == 4


def test_the_folder_is_laid_out_as_on_the_hub(hub_folder: Path) -> None:
    files = {path.name for path in hub_folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files
    assert json.loads((hub_folder / "config.json").read_text())["architectures"] == [
        "LlavaForConditionalGeneration"
    ]
