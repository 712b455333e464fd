"""A model that does not fit is refused before anything is downloaded or allocated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hub import FakeHub
from tiny_models import build
from transformers import AutoModelForImageTextToText

from vlalign_utils import load_vlm
from vlalign_utils.loading import memory
from vlalign_utils.loading.memory import bytes_available, bytes_needed


def test_bytes_needed_are_those_of_the_weights() -> None:
    model = build("llava")[0].model
    held = {*model.parameters(), *model.buffers()}
    assert bytes_needed(model) == sum(t.numel() * t.element_size() for t in held)
    assert bytes_needed(model.bfloat16()) < 0.6 * bytes_needed(build("llava")[0].model)


def test_quantised_layers_take_less_and_the_head_stays() -> None:
    model = build("llava")[0].model
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    linear -= model.lm_head.weight.numel()
    assert bytes_needed(model) - bytes_needed(model, "8bit") == 3 * linear
    assert bytes_needed(model) - bytes_needed(model, "4bit") == 3.4375 * linear


def test_memory_under_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "slurm" / "job_1"
    job.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slurm/job_1\n")
    (job.parent / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("1000\n")
    (job / "memory.current").write_text("700\n")
    (job / "memory.stat").write_text("anon 500\nfile 200\n")
    assert memory._control_group(tmp_path, tmp_path / "cgroup") == [500]
    assert memory._control_group(tmp_path, tmp_path / "none") == []
    monkeypatch.setattr(memory, "_control_group", lambda: [500])
    assert bytes_available(torch.device("cpu")) == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"device": "cpu"},
            r"^org/model needs 0.00 GiB for its weights, cpu has 0.00 GiB free: "
            r'try dtype="bfloat16", device_map="auto" to spread it, quantization=.* or a smaller model$',
        ),
        ({"device": "cpu", "dtype": "float16"}, 'free: try device_map="auto"'),
        ({"device_map": "auto"}, 'all devices together has .* a device_map with "disk"'),
    ],
)
def test_a_model_that_does_not_fit(
    hub_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    hub = FakeHub(monkeypatch, tmp_path)
    hub.repos["org/model"] = hub_folder
    monkeypatch.setattr(memory, "_control_group", lambda: [1000])
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=message):
        load_vlm("org/model", **arguments)
    assert hub.downloads
    assert not hub.weights


@pytest.mark.slow
def test_a_mapping_with_layers_on_disk_is_not_held_against_the_memory(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_control_group", lambda: [1000])
    layer = load_vlm(hub_folder, device_map={"": "disk"}).layers[0]
    assert layer.self_attn.q_proj.weight.is_meta
