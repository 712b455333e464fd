"""Weights that are missing, do not fit, or belong to no layer are found before any is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, each_family
from transformers import AutoConfig, AutoModelForImageTextToText

from vlalign_utils import load_vlm
from vlalign_utils.loading.checkpoint import locate
from vlalign_utils.loading.dry_run import load_without_weights
from vlalign_utils.loading.safetensors_headers import read_headers

Weights = dict[str, torch.Tensor]


@each_family
def test_a_rehearsed_model_is_the_loaded_one_without_weights(family: str, tmp_path: Path) -> None:
    build(family)[0].model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config._attn_implementation = "flash_attention_2"  # as it may be written in a config.json
    empty = load_without_weights("tiny", config, read_headers(locate(tmp_path)), torch.bfloat16)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(p.is_meta for p in empty.parameters())
    assert {n: (p.shape, p.dtype) for n, p in empty.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in loaded.named_parameters()
    }
    assert config._attn_implementation == "flash_attention_2"  # left alone


def edit_config(folder: Path, **text: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(change: Callable[[Weights], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


HEAD = "language_model.lm_head.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            edit_weights(lambda w: w.pop(HEAD)),
            "lacks 1 weights of LlavaForConditionalGeneration, lm_head.weight first",
        ),
        (
            edit_weights(lambda w: w.update({HEAD: torch.zeros(64, 31)})),
            r"1 weights do not fit its config.json, lm_head.weight first, .* \[64, 31\] where .* \[64, 32",
        ),
        (
            lambda folder: edit_config(folder, num_hidden_layers=3),
            r"decoder layers that Llava.* with 3 layers does not have, .*layers\.3\.input_layernorm",
        ),
        (lambda folder: edit_config(folder, num_hidden_layers=5), r"lacks 9 weights of .*layers\.4\."),
    ],
)
def test_files_that_do_not_fit_their_configuration(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, message: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    copy = Path(shutil.copytree(hub_folder, tmp_path / "copy"))
    damage(copy)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=message):
        load_vlm(copy, device="cpu")


def test_an_attention_that_the_class_does_not_have(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(build("llava")[0].model)
    monkeypatch.setattr(kind, "_supports_flex_attn", False)
    with pytest.raises(ValueError, match=r"cannot use attn_implementation='flex_attention', pass \"eager\""):
        load_vlm(hub_folder, device="cpu", attn_implementation="flex_attention")
