"""Where and how a model is put into memory: device, precision, quantisation, attention; checked up front."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
QUANTIZATION = ("4bit", "8bit")
_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}

DeviceMap = str | Mapping[str, Any]


@dataclass(frozen=True)
class Placement:
    """Device, precision, attention and quantisation to load with, checked."""

    device: torch.device
    device_map: DeviceMap | None
    dtype: torch.dtype | None  # None: the checkpoint's own, float32 on cpu
    attention: str | None
    quantization: str | None

    def precision(self, stored: torch.dtype) -> torch.dtype:
        """Precision to load in, given the checkpoint's own. Raises ValueError where flash cannot have it."""
        on_cpu = self.device.type == "cpu"
        precision = self.dtype or (torch.float32 if on_cpu else stored)
        if self.attention in _FLASH and precision == torch.float32:
            raise ValueError(
                f"attn_implementation={self.attention!r} computes in half precision, the weights are "
                'float32: pass dtype="bfloat16" or another attention'
            )
        return precision

    def arguments(self, precision: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        arguments: dict[str, Any] = {"dtype": precision, "attn_implementation": self.attention}
        if self.device_map is not None:
            arguments["device_map"] = self.device_map
        elif self.device.type != "cpu" or self.quantization:
            arguments["device_map"] = {"": self.device}  # straight to it, not through the cpu's memory
        if self.quantization:
            from transformers import BitsAndBytesConfig

            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=self.quantization == "4bit",
                load_in_8bit=self.quantization == "8bit",
                bnb_4bit_compute_dtype=precision,
                bnb_4bit_quant_type="nf4",
            )
        return arguments


def place(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str | None = None,
    device_map: DeviceMap | None = None,
    quantization: str | None = None,
) -> Placement:
    """Check the arguments against this machine. Raises ValueError with what to pass instead."""
    if device_map is not None and device != "auto":
        raise ValueError(f"device={str(device)!r} and device_map={device_map!r}: give one of the two")
    if isinstance(device_map, str) and device_map != "auto":
        raise ValueError(f'device_map={device_map!r}, expected "auto" or a mapping from modules to devices')
    where = _device(device)
    if quantization is not None:
        _check_quantization(quantization, where)
    _check_attention(attention, where)
    return Placement(where, device_map, _dtype(dtype), attention, quantization)


def _check_quantization(quantization: str, where: torch.device) -> None:
    if quantization not in QUANTIZATION:
        raise ValueError(f"quantization={quantization!r}, expected one of {', '.join(QUANTIZATION)}")
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization={quantization!r} needs the package bitsandbytes: pip install bitsandbytes"
        )
    if where.type != "cuda":
        raise ValueError(
            f"quantization={quantization!r} needs a cuda device, the model would be on {where}: "
            "load it without quantization"
        )


def _check_attention(attention: str | None, where: torch.device) -> None:
    if attention not in (None, *ATTENTION):
        raise ValueError(f"attn_implementation={attention!r}, expected one of {', '.join(ATTENTION)}")
    if attention not in _FLASH:
        return
    if where.type != "cuda":
        raise ValueError(
            f"attn_implementation={attention!r} needs a cuda device, the model would be on {where}: "
            'pass attn_implementation="sdpa"'
        )
    package = _FLASH[attention]
    if find_spec(package) is None and find_spec("kernels") is None:
        raise ValueError(
            f"attn_implementation={attention!r} needs the package {package} or kernels: install one of them "
            'or pass attn_implementation="sdpa"'
        )


def _device(name: str | torch.device) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r}, expected auto, cpu, cuda, cuda:0 or mps") from None
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or not available.get(device.type, False):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device={str(name)!r} is not available here, only {here}")
    return device


def _dtype(name: str | torch.dtype) -> torch.dtype | None:
    """Precision asked for, None for auto."""
    if name == "auto":
        return None
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype={name!r}, expected auto, {', '.join(DTYPES)}")
    return dtype
