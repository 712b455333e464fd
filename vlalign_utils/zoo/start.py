"""Device and precision that a chain is trained with: deterministic, on the processor or on GPUs."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from vlalign_utils.tuning.accelerators import new_accelerator

# What torch.backends.cpu.get_cpu_capability() calls processors whose products in bfloat16 are emulated.
EMULATED = ("DEFAULT", "AVX2")


def half_precision(device: str) -> torch.dtype:
    """The precision to compute a chain in: bfloat16, or float32 on a processor that would emulate it.

    Without AVX-512 a product of matrices in bfloat16 took 70 times as long as in float32.
    """
    emulated = device == "cpu" and torch.backends.cpu.get_cpu_capability() in EMULATED
    return torch.float32 if emulated else torch.bfloat16


def start(device: str, precision: str = "bf16") -> Accelerator:
    """Accelerator on `device` (`cpu`, or `cuda` for as many as `accelerate launch` gives); deterministic.

    `precision` is that of the forward pass: "bf16", or "no" for single, which a processor that would emulate
    bfloat16 takes in any case.

    Raises ValueError for another device, or one that is not there.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"DEVICE is {device!r}; expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("DEVICE is cuda, but torch sees no CUDA device; leave it out to train on the CPU")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what makes cuBLAS deterministic
    torch.use_deterministic_algorithms(True)
    # Else new tensors are filled before they are written, for a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # A stage leaves out what its batches do not reach: layers for images where there are none.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # The others wait while one process evaluates.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    chosen = "no" if half_precision(device) == torch.float32 else precision
    if chosen != precision:
        print("this processor does not compute bfloat16 itself: float32 is used, which is faster here")
    return new_accelerator(chosen, device == "cpu", [unused, patience])
