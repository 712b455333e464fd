"""Stages kept as what was trained: what is written, what is read again, and what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build
from tiny_parts import CONNECTOR, LANGUAGE, MADE_OF, connector, write

from vlalign_utils.loading.stage_file import SETTINGS, Stage, read_stage

pytestmark = pytest.mark.usefixtures("tiny_parts")
Q = "model.language_model.layers.0.self_attn.q_proj"


def low_rank() -> dict[str, torch.Tensor]:
    return {f"{Q}.lora_A.weight": torch.ones(2, 32), f"{Q}.lora_B.weight": torch.ones(32, 2)}


def test_a_stage_holds_what_is_its_own(tmp_path: Path) -> None:
    shared = tmp_path / "zoo" / "vision" / "tower.safetensors"
    shared.parent.mkdir(parents=True)
    save_file({"model.vision_tower.post_layernorm.bias": torch.ones(16)}, shared)
    folder = write(
        tmp_path / "zoo" / "tuned",
        weights={"connector.safetensors": connector(0.1)},
        shared=[shared],
        lora=low_rank(),
        alpha=4.0,
        seed=7,
    )
    own = {"stage.json", "connector.safetensors", "lora.safetensors"}
    assert {path.name for path in folder.iterdir()} == {*SETTINGS, *own}
    stage = read_stage(folder)
    assert (stage.parts, stage.seed) == (MADE_OF, 7)
    assert list(stage.weights) == ["connector.safetensors", "../vision/tower.safetensors"]
    assert stage.lora is not None
    assert (stage.lora.file, stage.lora.rank, stage.lora.alpha) == ("lora.safetensors", 2, 4.0)
    held = load_file(folder / "connector.safetensors")
    assert set(held) == set(connector(0.1))
    assert held[f"{CONNECTOR}.linear_1.bias"].dtype == torch.bfloat16


def test_settings_say_nothing_of_the_training_or_the_machine(tmp_path: Path) -> None:
    model: Any = build("llava")[0].model
    before = model.config.dtype
    folder = write(tmp_path / "base", seed=0)
    config = json.loads((folder / "config.json").read_text())
    assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {"float32"}
    assert model.config.dtype == before
    assert not any(str(tmp_path) in path.read_text() for path in folder.iterdir())


def test_a_stage_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "base", weights={"old.safetensors": connector(0.1)})
    write(folder, seed=1)
    assert not (folder / "old.safetensors").exists()
    settings = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SETTINGS}
    assert read_stage(folder) == Stage(parts=MADE_OF, seed=1, settings=settings)


@pytest.mark.parametrize("name", ["connector.safetensors", "lora.safetensors", "config.json"])
def test_files_that_are_not_those_written_are_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "t", weights={"connector.safetensors": connector(0.1)}, lora=low_rank())
    (folder / name).write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=rf"{name} is not the file that .*stage\.json was written with"):
        read_stage(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing: restore it from git, or train"):
        read_stage(folder)


def test_settings_that_are_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "base", seed=0)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"chat_template\.jinja is missing: restore it from git"):
        read_stage(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, r"stage\.json: sed: Extra inputs are not permitted"),
        ({"seed": "1"}, r"stage\.json: seed: Input should be a valid integer"),
        ({"parts": None}, r"stage\.json: parts: Input should be"),
        ({"parts": {"model": {"part": "llama", "module": "model"}}}, r"there is no part 'llama'; there are:"),
        ({"lora": {"file": "a", "sha256": "b", "rank": 0, "alpha": 1.0}}, r"stage\.json: lora\.rank: "),
    ],
)
def test_a_stage_file_that_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write(tmp_path / "base", seed=0)
    path = folder / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_stage(folder)


def test_a_stage_file_that_is_no_json(tmp_path: Path) -> None:
    folder = write(tmp_path / "base", seed=0)
    (folder / "stage.json").write_text("{")
    with pytest.raises(ValueError, match=r"stage\.json: it: Invalid JSON"):
        read_stage(folder)
    assert (
        json.loads((write(folder, seed=0) / "stage.json").read_text())["parts"]["lm_head"]["part"] == LANGUAGE
    )
