"""Memory that a model's weights take and that is free, before any of it is allocated."""

from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from vlalign_utils.loading.placement import Placement

# Bytes a weight of a quantised linear layer takes: 4-bit codes come with a float32 scale for every 64.
_QUANTISED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}


def bytes_needed(model: nn.Module, quantization: str | None = None) -> int:
    """Bytes of the weights of a model, which may be on the meta device, as they would be loaded."""
    whole: Any = model
    kept = {id(whole.get_output_embeddings())}
    size = {id(t): float(t.numel() * t.element_size()) for t in (*model.parameters(), *model.buffers())}
    for module in model.modules() if quantization else ():
        if isinstance(module, nn.Linear) and id(module) not in kept:
            size[id(module.weight)] = module.weight.numel() * _QUANTISED[quantization or ""]
    return round(sum(size.values()))


def bytes_available(device: torch.device) -> int:
    """Free memory of a device; on the cpu no more than what the control group leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min([int(psutil.virtual_memory().available), *_control_group()])


def _control_group(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Memory left under the limits that a container or a cluster's scheduler set, none where none is."""
    if not process.is_file():
        return []
    path = process.read_text(encoding="utf-8").strip().splitlines()[-1].split(":")[-1].lstrip("/")
    left = []
    for folder in {root / path, *(root / path).parents}:
        if (folder / "memory.max").is_file() and (
            limit := (folder / "memory.max").read_text().strip()
        ) != "max":
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(stat["file"])  # a cache gives way
            left.append(int(limit) - used)
    return left


def check_memory(name: str, model: nn.Module, placement: Placement) -> None:
    """Raise ValueError when the weights would not fit where they are to go.

    With device_map="auto" that is every accelerator and the cpu together; a mapping is not checked.
    """
    if placement.device_map is not None and placement.device_map != "auto":
        return
    need = bytes_needed(model, placement.quantization)
    if placement.device_map is None:
        have, where = bytes_available(placement.device), str(placement.device)
        ways = ['device_map="auto" to spread it', 'quantization="4bit" or "8bit" on cuda']
    else:
        devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        have, where = sum(map(bytes_available, (*devices, torch.device("cpu")))), "all devices together"
        ways = ['a device_map with "disk" for some layers', 'quantization="4bit" or "8bit" on cuda']
    if next(model.parameters()).element_size() > 2:
        ways.insert(0, 'dtype="bfloat16"')
    if need > have:
        raise ValueError(
            f"{name} needs {_gib(need)} for its weights, {where} has {_gib(have)} free: "
            f"try {', '.join(ways)}, or a smaller model"
        )


def _gib(size: int) -> str:
    return f"{max(size, 0) / 2**30:.2f} GiB"
