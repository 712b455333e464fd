"""Stages of a chain from parts after its tower's: connector by captions, LoRA and connector by questions."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.paths import atomic_file
from vlalign_utils.tuning.lora import ADAPTER, adapted
from vlalign_utils.tuning.train_loop import SAVE_EVERY, History, Schedule, fit
from vlalign_utils.tuning.trainable import in_float32, trainable
from vlalign_utils.tuning.training_state import load_state
from vlalign_utils.zoo.answering import Answering, Example, batch_of
from vlalign_utils.zoo.centred import centred, mean_input
from vlalign_utils.zoo.compiled import compiled
from vlalign_utils.zoo.connector import linears, parameters
from vlalign_utils.zoo.stage_weights import Weights, digest, rounded

# Of the schedule's rate, for the connector's layers after its first. A step of one size for every weight
# moves a layer's output by the sum of its inputs: after a GELU they are of one sign, and at the whole rate
# 100 steps made image tokens 15 times as long as words, with a cosine of 0.94 between images.
LATER_RATE = 0.1

Examples = Callable[[int, int, int], list[Example]]  # of a batch: their number, the seed, the step


def train_connector(
    vlm: VLM, make: Examples, schedule: Schedule, seed: int, accelerator: Accelerator, checkpoint: Path
) -> tuple[History, Weights]:
    """Stage `aligned`: the connector alone, from its random beginning; its weights by name."""
    own = parameters(vlm)
    with in_float32(list(own.values())), trainable(vlm.model, own.values()):
        history = _fit(vlm, make, schedule, seed, accelerator, checkpoint, "aligned")
        return history, rounded(own)


def train_answers(
    vlm: VLM,
    make: Examples,
    schedule: Schedule,
    rank: int,
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path,
) -> tuple[History, Weights, Weights]:
    """Stage `tuned`: LoRA in every linear module of the decoder layers, and the connector.

    Returns the history, the connector's weights and the LoRA matrices, by name.
    """
    own = parameters(vlm)
    with (
        adapted(vlm, range(vlm.n_layers), rank, seed) as new,
        # Under autocast the product is computed in half precision anyway.
        disable_input_dtype_casting(vlm.model),
        in_float32(list(own.values())),
        trainable(vlm.model, [*own.values(), *new]),
    ):
        history = _fit(vlm, make, schedule, seed, accelerator, checkpoint, "tuned", marks(schedule))
        adapters = {
            name.replace(f".{ADAPTER}.", "."): p
            for name, p in vlm.model.named_parameters()
            if f".{ADAPTER}." in name
        }
        return history, rounded(own), rounded(adapters)


def _fit(
    vlm: VLM,
    make: Examples,
    schedule: Schedule,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path,
    label: str,
    kept: Sequence[int] = (),
) -> History:
    share = slice(accelerator.process_index, None, accelerator.num_processes)

    def batches(first: int) -> Iterator[Any]:
        for step in range(first, schedule.steps):
            if step in kept and accelerator.is_main_process:
                with atomic_file(marked(checkpoint, step)) as unfinished:
                    shutil.copyfile(checkpoint, unfinished)
            yield batch_of(vlm, make(schedule.batch_size, seed, step)[share])

    start, task = digest(vlm.model), Answering(vlm)
    first, *later = linears(vlm)
    slow = {id(p) for layer in later for p in layer.parameters()}
    with ExitStack() as undo:
        if first.bias is not None:
            examples = make(schedule.batch_size, seed, 0)
            with accelerator.autocast():
                mean = mean_input(first, lambda: task(batch_of(vlm, examples)))
            undo.enter_context(centred(first, mean))
        undo.enter_context(compiled(vlm.layers))
        return fit(task, schedule, batches, accelerator, checkpoint, label, partial(_adamw, slow), of=start)


def marks(schedule: Schedule) -> list[int]:
    """Steps whose checkpoint stays, about a quarter of a schedule apart: all are steps that are saved.

    >>> marks(Schedule(steps=1200, batch_size=16, lr=1e-3))
    [300, 600, 900]
    """
    apart = max(1, round(schedule.steps / 4 / SAVE_EVERY)) * SAVE_EVERY
    return list(range(apart, schedule.steps, apart))


def marked(checkpoint: Path, step: int) -> Path:
    """Where the checkpoint of a step stays.

    >>> marked(Path("tuned.ckpt"), 300).name
    'tuned-step300.ckpt'
    """
    return checkpoint.with_name(f"{checkpoint.stem}-step{step}{checkpoint.suffix}")


def trained_so_far(checkpoint: Path) -> tuple[Weights, Weights]:
    """Connector and LoRA matrices of a checkpoint of stage `tuned`, by name, as `train_answers` gives them.

    Raises ValueError for a damaged file.
    """
    weights = {
        name.removeprefix("model."): value for name, value in load_state(checkpoint)["weights"].items()
    }
    connector: Weights = {}
    adapters: Weights = {}
    for name, value in weights.items():
        into = adapters if f".{ADAPTER}." in name else connector
        into[name.replace(f".{ADAPTER}.", ".")] = value.to(torch.bfloat16)
    return connector, adapters


def _adamw(
    slow: set[int], trained: dict[str, nn.Parameter], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """AdamW; parameters with the ids in `slow` are trained at `LATER_RATE`."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained.values() if id(p) not in slow]},
        {"params": [p for p in trained.values() if id(p) in slow], "times": LATER_RATE},
    ]
    return [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            schedule.lr,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
    ]
