"""Stages of a chain from parts: tower by naming, connector by captions, LoRA and connector by questions."""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.tuning.lora import ADAPTER, adapted
from vlalign_utils.tuning.train_loop import History, Schedule, fit
from vlalign_utils.tuning.trainable import in_float32, trainable
from vlalign_utils.zoo.answering import Answering, Example, batch_of
from vlalign_utils.zoo.centred import centred, mean_input
from vlalign_utils.zoo.compiled import compiled
from vlalign_utils.zoo.naming_stage import RegionNaming, adamw, chosen

# Of the schedule's rate, for the connector's layers after its first. A step of one size for every weight
# moves a layer's output by the sum of its inputs: after a GELU they are of one sign, and at the whole rate
# 100 steps made image tokens 15 times as long as words, with a cosine of 0.94 between images.
LATER_RATE = 0.1

Weights = dict[str, Tensor]
Examples = Callable[[int, int, int], list[Example]]  # of a batch: their number, the seed, the step


def train_connector(
    vlm: VLM, make: Examples, schedule: Schedule, seed: int, accelerator: Accelerator, checkpoint: Path
) -> tuple[History, Weights]:
    """Stage `aligned`: the connector alone, from its random beginning; its weights by name."""
    own = connector_parameters(vlm.model)
    with in_float32(list(own.values())), trainable(vlm.model, own.values()):
        history = _fit(vlm, make, schedule, seed, accelerator, checkpoint, "aligned")
        return history, _rounded(own)


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
    own = connector_parameters(vlm.model)
    with (
        adapted(vlm, range(vlm.n_layers), rank, seed) as new,
        # Under autocast the product is computed in half precision anyway.
        disable_input_dtype_casting(vlm.model),
        in_float32(list(own.values())),
        trainable(vlm.model, [*own.values(), *new]),
    ):
        history = _fit(vlm, make, schedule, seed, accelerator, checkpoint, "tuned")
        adapters = {
            name.replace(f".{ADAPTER}.", "."): p
            for name, p in vlm.model.named_parameters()
            if f".{ADAPTER}." in name
        }
        return history, _rounded(own), _rounded(adapters)


def train_tower(
    model: Any,
    pattern: str,
    sizes: list[int],
    batches: Callable[[int], Iterator[Any]],
    schedule: Schedule,
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path,
) -> tuple[History, Weights]:
    """Stage `vision`: what `pattern` names of the tower; its weights by their names in the whole model.

    The model is in float32. `sizes` are the numbers of words along each axis of the batches' regions.
    """
    tower = model.base_model.vision_tower
    own = chosen(tower, pattern)
    task = RegionNaming(tower, model.config.vision_config.hidden_size, sizes, seed)
    prefix = next(name for name, module in model.named_modules() if module is tower)
    tower.to(memory_format=torch.channels_last)
    with trainable(model, own.values()):
        history = fit(task, schedule, batches, accelerator, checkpoint, "vision", adamw)
        return history, _rounded({f"{prefix}.{name}": p for name, p in own.items()})


def connector_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the module between tower and text model, by name."""
    return {n: p for n, p in model.named_parameters() if re.match(r"model\.multi_modal_projector\.", n)}


def linears(model: Any) -> list[nn.Linear]:
    """Linear layers of the connector, in the order of the data."""
    return [m for m in model.base_model.multi_modal_projector.modules() if isinstance(m, nn.Linear)]


def _fit(
    vlm: VLM,
    make: Examples,
    schedule: Schedule,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path,
    label: str,
) -> History:
    share = slice(accelerator.process_index, None, accelerator.num_processes)

    def batches(first: int) -> Iterator[Any]:
        for step in range(first, schedule.steps):
            yield batch_of(vlm, make(schedule.batch_size, seed, step)[share])

    start, task = _digest(vlm.model), Answering(vlm)
    first, *later = linears(vlm.model)
    examples = make(schedule.batch_size, seed, 0)
    with accelerator.autocast():
        mean = mean_input(first, lambda: task(batch_of(vlm, examples)))
    slow = {id(p) for layer in later for p in layer.parameters()}
    with centred(first, mean), compiled(vlm.layers):
        return fit(task, schedule, batches, accelerator, checkpoint, label, partial(_adamw, slow), of=start)


def _digest(model: nn.Module) -> str:
    """SHA-256 of the weights at the start: a checkpoint of another tower or connector is refused."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _adamw(
    slow: set[int], trained: dict[str, nn.Parameter], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """AdamW; parameters with the ids in `slow` are trained at `LATER_RATE`."""
    groups = [
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


def _rounded(parameters: dict[str, nn.Parameter]) -> Weights:
    """Copies in bfloat16, as they are stored and as the next stage has them."""
    return {name: p.detach().to(torch.bfloat16, copy=True) for name, p in parameters.items()}
