"""Name of what a time was measured on."""

import platform
import re
from pathlib import Path

import torch


def machine(device: str) -> str:
    """Name of the card for "cuda", or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
