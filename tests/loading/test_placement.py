"""Device, precision, quantisation and attention are checked before anything else."""

from typing import Any

import pytest
import torch

from vlalign_utils.loading import placement
from vlalign_utils.loading.placement import place


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device='gpu', expected auto, cpu, cuda"),
        ({"device": "cuda:99"}, "device='cuda:99' is not available here, only .*cpu"),
        ({"dtype": "float8"}, "dtype='float8', expected auto, float32, bfloat16, float16"),
        ({"dtype": torch.int64}, "dtype=torch.int64, expected auto"),
        ({"attention": "fast"}, "attn_implementation='fast', expected one of eager, sdpa"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto': give one of the two"),
        ({"device_map": "balanced"}, "device_map='balanced', expected \"auto\" or a mapping"),
        ({"quantization": "2bit"}, "quantization='2bit', expected one of 4bit, 8bit"),
        (
            {"device": "cpu", "attention": "flash_attention_2"},
            "attn_implementation='flash_attention_2' needs a cuda device, the model would be on cpu",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(**arguments)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def packages(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: name if name in installed else None)


@pytest.mark.usefixtures("a_gpu")
def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch)
    with pytest.raises(ValueError, match="'4bit' needs the package bitsandbytes: pip install bitsandbytes"):
        place(quantization="4bit")
    with pytest.raises(ValueError, match="needs the package flash_attn or kernels: install one"):
        place(attention="flash_attention_2")
    packages(monkeypatch, "kernels")
    with pytest.raises(ValueError, match=r"computes in half precision, .* pass dtype=\"bfloat16\""):
        place(attention="flash_attention_2").precision(torch.float32)
    assert place(attention="flash_attention_2").precision(torch.bfloat16) == torch.bfloat16


def test_quantisation_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, "bitsandbytes")
    with pytest.raises(ValueError, match="'8bit' needs a cuda device, the model would be on cpu"):
        place(device="cpu", quantization="8bit")


def test_arguments_of_from_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.bfloat16
    assert place(device="cpu").precision(half) == torch.float32
    assert place(device="cpu", dtype="bfloat16").arguments(half) == {
        "dtype": half,
        "attn_implementation": None,
    }
    assert place(device_map="auto").arguments(half)["device_map"] == "auto"


@pytest.mark.usefixtures("a_gpu")
def test_arguments_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, "bitsandbytes")
    gpu = place(dtype="auto", quantization="4bit")
    assert gpu.precision(torch.bfloat16) == torch.bfloat16
    arguments = gpu.arguments(torch.bfloat16)
    assert arguments["device_map"] == {"": torch.device("cuda")}
    assert arguments["quantization_config"].load_in_4bit
    assert arguments["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16
