"""Stage `vision`: which layers are compiled, how many tokens an image has, and which teacher is refused."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_models import build, randomise, tiny_processor
from torch import nn

from vlalign_utils import VLM
from vlalign_utils.tuning.accelerators import new_accelerator
from vlalign_utils.tuning.train_loop import Schedule
from vlalign_utils.zoo import compiled, tower_stage
from vlalign_utils.zoo.naming_stage import Region, as_batch

SCHEDULE = Schedule(steps=2, batch_size=2, lr=0.01)


@pytest.fixture
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def batches(first: int, cells: int = 2) -> Any:
    region = [Region((0, 0, 1, 1), 0, 1)]
    for step in range(first, SCHEDULE.steps):
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        yield as_batch(pixels, [region] * 2, cells) | {"teacher_pixels": pixels}


def test_features_of_an_image_form_a_square(vlm: VLM) -> None:
    assert tower_stage.grid(vlm, 16) == 2


def test_blocks_are_the_layers_of_a_transformer(vlm: VLM) -> None:
    tower: Any = vlm.model.get_encoder(modality="image")
    assert tower_stage.blocks(tower) == [m for m in tower.modules() if type(m).__name__ == "CLIPEncoderLayer"]
    assert tower_stage.blocks(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)))) == []


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Train the first layer of a tiny tower."""
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    AcceleratorState._reset_state(reset_partial_state=True)

    def run(vlm: VLM, teacher: VLM | None, make: Callable[[int], Any] = batches) -> Any:
        return tower_stage.train_tower(
            vlm,
            r".*layers\.0\..*",
            [3],
            make,
            SCHEDULE,
            teacher=teacher,
            seed=0,
            accelerator=new_accelerator("no", cpu=True),
            checkpoint=tmp_path / "vision.ckpt",
        )

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("taught", [False, True])
def test_what_the_pattern_names_is_trained_and_nothing_else(train: Any, vlm: VLM, taught: bool) -> None:
    model: Any = vlm.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    teacher = VLM(randomise(deepcopy(model))) if taught else None
    history, weights = train(vlm, teacher)
    assert history.step == SCHEDULE.steps
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == set(weights)
    assert all(name.startswith("model.vision_tower.") and ".layers.0." in name for name in changed)
    assert all(torch.equal(weights[name], model.state_dict()[name].bfloat16()) for name in changed)
    assert not any(
        parameter.grad is not None for name, parameter in model.named_parameters() if name not in changed
    )


def test_training_resumes_with_the_same_teacher_only(train: Any, vlm: VLM) -> None:
    model: Any = vlm.model
    teacher, other = VLM(deepcopy(model)), VLM(deepcopy(model))
    _, weights = train(VLM(deepcopy(model)), teacher)
    _, again = train(VLM(deepcopy(model)), teacher)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    next(other.model.parameters()).data += 1
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train(VLM(deepcopy(model)), other)


def test_a_teacher_of_other_tokens_is_refused(train: Any, vlm: VLM) -> None:
    vlm.source = SimpleNamespace(name="zoo/other")
    with pytest.raises(
        ValueError, match=r"teacher: zoo/other makes 4 tokens of an image, .* from it 9: name"
    ):
        train(VLM(deepcopy(vlm.model)), vlm, lambda first: batches(first, cells=3))
