"""Stages of a chain from parts after its tower's: connector by captions, LoRA and connector by questions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import save_file
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.paths import atomic_file
from vlalign_utils.tuning.lora import ADAPTER, adapted
from vlalign_utils.tuning.train_loop import History, Schedule, fit
from vlalign_utils.tuning.trainable import in_float32, trainable
from vlalign_utils.zoo.answering import Answering, Example, batch_of
from vlalign_utils.zoo.centred import centred, mean_input, own_bias
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
        adapters = {_plain(name): p for name, p in vlm.model.named_parameters() if f".{ADAPTER}." in name}
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
    shift: dict[str, Tensor] = {}  # the input's mean, by the name of the layer that is centred

    def so_far() -> Weights:
        """What the stage has learned by now, as its folder would have it."""
        trained = {name: p for name, p in vlm.model.named_parameters() if p.requires_grad}
        for name, mean in shift.items():
            trained[f"{name}.bias"] = own_bias(vlm.model.get_submodule(name), mean)
        return {_plain(name): value for name, value in rounded(trained).items()}

    def batches(first: int) -> Iterator[Any]:
        for step in range(first, schedule.steps):
            if step in kept and accelerator.is_main_process:
                with atomic_file(marked(checkpoint, step)) as unfinished:
                    save_file(so_far(), unfinished)
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
            shift[next(name for name, module in vlm.model.named_modules() if module is first)] = mean
        undo.enter_context(compiled(vlm.layers))
        return fit(task, schedule, batches, accelerator, checkpoint, label, partial(_adamw, slow), of=start)


def marks(schedule: Schedule) -> list[int]:
    """Steps whose weights stay, a quarter of a schedule apart.

    >>> marks(Schedule(steps=1200, batch_size=16, lr=1e-3))
    [300, 600, 900]
    """
    apart = max(1, schedule.steps // 4)
    return list(range(apart, schedule.steps, apart))


def marked(checkpoint: Path, step: int) -> Path:
    """Where the weights of a step stay.

    >>> marked(Path("tuned.ckpt"), 300).name
    'tuned-step300.safetensors'
    """
    return checkpoint.with_name(f"{checkpoint.stem}-step{step}.safetensors")


def _plain(name: str) -> str:
    """A LoRA matrix's name without that of its adapter; any other name as it is."""
    return name.replace(f".{ADAPTER}.", ".")


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
