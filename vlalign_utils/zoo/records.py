"""What a chain's record says about how its stages were trained."""

import platform
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator

from vlalign_utils.tuning.train_loop import History, Schedule


def versions() -> dict[str, str]:
    """Versions of what decides a chain's weights besides its recipe."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def device_name(accelerator: Accelerator) -> str:
    """Number of processes and the device of each."""
    cuda = accelerator.device.type == "cuda"
    cpu = f"CPU (torch threads: {torch.get_num_threads()})"
    return f"{accelerator.num_processes} x {torch.cuda.get_device_name(accelerator.device) if cuda else cpu}"


def stage_record(schedule: Schedule, history: History, trained: int) -> dict[str, Any]:
    """Length, duration and curve of a stage, and how many parameters it trained."""
    return {
        "steps": history.step,
        "batch_size": schedule.batch_size,
        "examples": history.step * schedule.batch_size,
        "seconds": round(history.seconds),
        "parameters_trained": trained,
        "curve": [list(point) for point in history.curve],
    }
