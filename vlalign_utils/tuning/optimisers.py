"""Optimisers that a fine-tune may take, by name."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from vlalign_utils.tuning.train_loop import Make, Schedule

Optimiser = Literal["adamw", "adamw8bit"]
BETAS = (0.9, 0.95)


def adamw(trained: Mapping[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW of torch, whose moments are float32."""
    decay = schedule.weight_decay
    return [torch.optim.AdamW(trained.values(), schedule.lr, betas=BETAS, weight_decay=decay, fused=True)]


def adamw8bit(trained: Mapping[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW of bitsandbytes, whose moments are of 8 bits; the package is needed only here."""
    from bitsandbytes.optim import AdamW8bit

    return [AdamW8bit(trained.values(), schedule.lr, betas=BETAS, weight_decay=schedule.weight_decay)]


OPTIMISERS: dict[Optimiser, Make] = {"adamw": adamw, "adamw8bit": adamw8bit}
