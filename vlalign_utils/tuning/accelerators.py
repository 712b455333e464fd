"""The accelerator that training runs on: its device, and the precision that it computes in."""

from collections.abc import Sequence
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import KwargsHandler

from vlalign_utils.driver.vlm import VLM

Precision = Literal["auto", "no", "bf16", "fp16"]
HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def accelerator_for(vlm: VLM, precision: Precision) -> Accelerator:
    """Accelerator on the model's kind of device; "auto" is the precision of the model's own weights.

    Raises ValueError for another precision than that of weights in half precision, and for "fp16" on the CPU.
    """
    own = HALF.get(vlm.model.dtype, "no")
    chosen = own if precision == "auto" else precision
    if own not in ("no", chosen):
        raise ValueError(
            f"the model's weights are {own}, precision is {precision!r}: pass {own!r} or 'auto', or "
            'load the model with dtype="float32"'
        )
    cpu = vlm.device.type == "cpu"
    if chosen == "fp16" and cpu:
        raise ValueError(
            "precision 'fp16' needs a cuda device: load the model with dtype=\"float32\", "
            "and pass 'bf16' or 'no'"
        )
    return new_accelerator(chosen, cpu)


def new_accelerator(precision: str, cpu: bool, handlers: Sequence[KwargsHandler] = ()) -> Accelerator:
    """Accelerator of this precision, also where the process has trained in another one before."""
    # accelerate keeps one precision for a process, but one model may follow another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=list(handlers) or None)
