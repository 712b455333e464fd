"""Pretrained parts of a tiny LLaVA, as if packages carried them, and what a stage of it is made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TEXT, build, tiny_processor
from transformers import LlamaConfig, LlamaForCausalLM

from vlalign_utils.loading import assembled, parts
from vlalign_utils.loading.parts import PARTS, Part
from vlalign_utils.loading.stage_file import Source, write_stage

LANGUAGE, TOWER = "tiny-language", "tiny-tower"
MADE_OF = {
    "model.language_model": Source(part=LANGUAGE, module="model"),
    "lm_head": Source(part=LANGUAGE, module="lm_head"),
    "model.vision_tower": Source(part=TOWER, module="tower"),
}
CONNECTOR = "model.multi_modal_projector"


def language_weights() -> dict[str, torch.Tensor]:
    """Weights of the tiny language model, in the precision of a part."""
    torch.manual_seed(3)
    return dict(LlamaForCausalLM(LlamaConfig(**TEXT)).to(torch.bfloat16).state_dict())


def tower_weights() -> dict[str, torch.Tensor]:
    """Weights of the tiny vision tower, which has a head that no stage uses."""
    tower: Any = build("llava")[0].model.model.vision_tower
    own = {f"tower.{name}": weight.to(torch.bfloat16) for name, weight in tower.state_dict().items()}
    return own | {"tower.head.weight": torch.zeros(2, dtype=torch.bfloat16)}


def install(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Make the two parts available, with caches of their own."""

    def convert_language(file: Path, folder: Path) -> None:
        save_file(language_weights(), folder / "model.safetensors")
        tiny_processor().tokenizer.save_pretrained(folder)

    def convert_tower(file: Path, folder: Path) -> None:
        save_file(tower_weights(), folder / "model.safetensors")

    (place / "file").write_bytes(b"published")
    monkeypatch.setattr(parts, "published_file", lambda part: place / "file")
    monkeypatch.setattr(parts, "CACHE", place / "parts")
    monkeypatch.setattr(assembled, "CACHE", place / "assembled")
    for name, convert in ((LANGUAGE, convert_language), (TOWER, convert_tower)):
        part = Part(name, name, "1", "file", sha256=name, convert=convert, licence="MIT", origin=name)
        monkeypatch.setitem(PARTS, name, part)


def write(folder: Path, **given: Any) -> Path:
    """A stage of the tiny LLaVA; `given` goes to `write_stage`."""
    write_stage(folder, build("llava")[0].model, tiny_processor(), MADE_OF, **given)
    return folder


def connector(value: float) -> Mapping[str, torch.Tensor]:
    """Tensors of the connector, all of one value."""
    weights: Any = build("llava")[0].model.get_submodule(CONNECTOR)
    return {f"{CONNECTOR}.{name}": torch.full_like(w, value) for name, w in weights.state_dict().items()}
