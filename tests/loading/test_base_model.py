"""stage="base": the base language model of a pair, its weights in the decoder of the other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hub import COMMIT, FakeHub, write_language_model, write_llava
from tiny_models import FAMILIES, TEXT, randomise
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from vlalign_utils import load_vlm
from vlalign_utils.loading import base_model

PICTURE = Image.new("RGB", (20, 16), (200, 90, 160))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "tiny-llama")


@pytest.fixture
def nothing_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)


def record_base(folder: Path, name: str) -> Path:
    """Write into a configuration which language model it was made from, as the hub's older ones say."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_name_or_path"] = name
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_decoder_is_the_base_language_model(hub_folder: Path, language: Path) -> None:
    tuned = load_vlm(hub_folder, device="cpu")
    base = load_vlm(hub_folder, stage="base", base=language, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(language).eval()
    text = base.prepare(["what colour is the shape ?"])
    with torch.no_grad():
        logits = plain(**text).logits
    assert torch.equal(base.record(**text).logits[..., :60], logits)
    # What is not language stays, the four image tokens' rows too.
    own, other = base.model.state_dict(), tuned.model.state_dict()
    changed = {name for name in own if not torch.equal(own[name], other[name])}
    assert changed == {n for n in own if "language_model" in n or "lm_head" in n}
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(own[name][60:], other[name][60:])
    run = base.record(**base.prepare(["what ?"], images=[PICTURE]))
    base.self_test(run)
    assert base.source.stage == "base"
    assert base.source.base.name == str(language)
    assert base.source.base.replaced == len(changed)
    assert base.source.base.kept == (
        "model.language_model.embed_tokens.weight[60:64]",
        "lm_head.weight[60:64]",
    )


@pytest.mark.slow
def test_the_base_that_the_configuration_records(
    hub_folder: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch, tmp_path / "cache")
    hub.repos["org/model"] = record_base(Path(shutil.copytree(hub_folder, tmp_path / "vlm")), "org/base")
    hub.repos["org/base"] = language
    base = load_vlm("org/model", stage="base", revision=COMMIT, device="cpu").source.base
    assert (base.name, base.revision, base.fingerprint) == ("org/base", COMMIT, None)
    assert {name for name in hub.weights if "base" in name} == {
        f"org/base/{path.name}" for path in language.glob("*.safetensors")
    }


@pytest.mark.slow
def test_the_text_part_of_another_vision_language_model_does(hub_folder: Path, tmp_path: Path) -> None:
    config, model_class, _ = FAMILIES["llava"]()
    torch.manual_seed(9)
    other = model_class(config)
    other.save_pretrained(tmp_path / "other")
    base = load_vlm(hub_folder, stage="base", base=tmp_path / "other", device="cpu")
    own, theirs = base.model.state_dict(), other.state_dict()
    language = {n for n in own if "language_model" in n or "lm_head" in n}
    assert {n for n in own if torch.equal(own[n], theirs[n])} >= language
    assert not torch.equal(*(m["model.multi_modal_projector.linear_1.weight"] for m in (own, theirs)))
    assert base.source.base.kept == ()


@pytest.mark.slow
def test_a_base_whose_head_is_its_embedding(hub_folder: Path, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "tied", tie_word_embeddings=True)
    base = load_vlm(hub_folder, stage="base", base=folder, device="cpu")
    embedding = base.model.get_input_embeddings().weight
    assert torch.equal(base.model.lm_head.weight[:60], embedding[:60])
    assert not torch.equal(base.model.lm_head.weight[60:], embedding[60:])


@pytest.mark.slow
def test_a_head_of_its_own_does_not_fit_a_tied_model(language: Path, tmp_path: Path) -> None:
    config, model_class, _ = FAMILIES["llava"]()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    write_llava(tmp_path / "vlm")
    randomise(model_class(config)).save_pretrained(tmp_path / "vlm")
    with pytest.raises(ValueError, match=r"has a head of its own, that of .* is its token embedding"):
        load_vlm(tmp_path / "vlm", stage="base", base=language, device="cpu")
    tied = write_language_model(tmp_path / "tied", tie_word_embeddings=True)
    model = load_vlm(tmp_path / "vlm", stage="base", base=tied, device="cpu").model
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_old_files_may_hold_buffers(hub_folder: Path, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "old")
    shard = min(folder.glob("*.safetensors"))
    weights = load_file(shard)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, shard, {"format": "pt"})
    load_vlm(hub_folder, stage="base", base=folder, device="cpu")


LAYERS = "the layers of .* do not match the 4 decoder layers of .*: "


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, LAYERS + r"only the base has model\.layers\.4\."),
        ({"num_hidden_layers": 3}, LAYERS + r"the base lacks layers\.3\."),
        ({"attention_bias": True}, LAYERS + r"only the base has model\.layers\.0\.self_attn\.k_proj\.bias"),
        (
            {"hidden_size": 64},
            r"\w+.weight is \[60, 64\], .* is \[64, 32\]: it is not the base",
        ),
        ({"intermediate_size": 32}, r"mlp\.\w+\.weight is .* it is not the base language model"),
        ({"vocab_size": 80}, r"\w+.weight is \[80, 32\], .* is \[64, 32\]"),
    ],
)
def test_a_base_of_another_shape(
    hub_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_language_model(tmp_path / "base", **changes)
    with pytest.raises(ValueError, match=message):
        load_vlm(hub_folder, stage="base", base=folder, device="cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_allocated")
def test_a_base_that_cannot_be_had(
    hub_folder: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = r"^the base language model of .*tiny-llava, pass another with base=: "
    with pytest.raises(ValueError, match=of + "./nowhere: no such folder"):
        load_vlm(hub_folder, stage="base", base="./nowhere", device="cpu")
    copy = Path(shutil.copytree(language, tmp_path / "pickled"))
    for path in copy.glob("*.safetensors*"):
        path.unlink()
    (copy / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=of + ".*has no safetensors weights"):
        load_vlm(hub_folder, stage="base", base=copy, device="cpu")
    hub = FakeHub(monkeypatch, tmp_path)
    hub.repos["org/base"] = copy
    with pytest.raises(ValueError, match=of + "org/base has no safetensors weights"):
        load_vlm(hub_folder, stage="base", base="org/base", base_revision="main", device="cpu")
    assert not hub.downloads
    other = write_language_model(tmp_path / "other", **{"vocab_size": TEXT["vocab_size"]})
    for shard in other.glob("*.safetensors"):
        codes = {n: w.to(torch.int8) for n, w in load_file(shard).items()}
        save_file(codes, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=r"is quantised .I8., pass a plain copy of it with base="):
        load_vlm(hub_folder, stage="base", base=other, device="cpu")


def test_an_offloaded_decoder_is_refused(hub_folder: Path, language: Path) -> None:
    with pytest.raises(ValueError, match=r"was offloaded, so the base's weights cannot replace it"):
        load_vlm(hub_folder, stage="base", base=language, device_map={"": "disk"})


def test_a_quantised_decoder_is_refused(hub_folder: Path) -> None:
    found = base_model.locate(hub_folder, "base")
    with pytest.raises(ValueError, match="quantization='4bit' cannot be combined with stage='base'"):
        base_model.check_pair(found, None, None, "4bit")
