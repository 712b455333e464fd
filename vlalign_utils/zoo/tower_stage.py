"""Stage `vision` of a chain from parts: a tower learns names, and what another sees where one is given."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.tuning.train_loop import History, Schedule, fit
from vlalign_utils.tuning.trainable import trainable
from vlalign_utils.zoo.compiled import compiled
from vlalign_utils.zoo.connector import linears, token_features
from vlalign_utils.zoo.distillation import Distillation
from vlalign_utils.zoo.naming_data import pixels
from vlalign_utils.zoo.naming_stage import RegionNaming, adamw, chosen
from vlalign_utils.zoo.stage_weights import Weights, digest, rounded

KNOWN = 4  # batches that tell the mean and spread of a teacher's features


def train_tower(
    vlm: VLM,
    pattern: str,
    sizes: list[int],
    batches: Callable[[int], Iterator[Any]],
    schedule: Schedule,
    *,
    teacher: VLM | None,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path,
) -> tuple[History, Weights]:
    """Train what `pattern` names of the tower of a model in float32.

    Args:
        vlm: the model.
        pattern: of the whole names of the tower's parameters.
        sizes: numbers of words along each axis of the batches' regions.
        batches: as `fit` takes them, each of `naming_batches`.
        schedule: of the training.
        teacher: model of as many image tokens, whose tower's features are learned as well.
        seed: of the words' first directions.
        accelerator: where and in which precision.
        checkpoint: what a killed run resumes from.

    Returns the history and the trained weights by their names in the whole model. Raises ValueError for a
    pattern that names nothing and a teacher with another number of image tokens, and as `fit` does.
    """
    model: Any = vlm.model.to(accelerator.device)
    tower = model.get_encoder(modality="image")
    own = chosen(tower, pattern)
    prefix = next(name for name, module in model.named_modules() if module is tower)
    tower.to(memory_format=torch.channels_last)
    given = {"tower": tower, "features": partial(token_features, vlm), "sizes": sizes, "seed": seed}
    given |= {"width": linears(vlm)[0].in_features}
    if teacher is None:
        task, start = RegionNaming(**given), ""
    else:
        taught: Any = teacher.model
        taught.to(memory_format=torch.channels_last)  # less than half of the time
        given |= {"teacher": partial(token_features, teacher)}
        given |= {"known": _known(teacher, list(islice(batches(0), KNOWN)))}
        task, start = Distillation(**given), digest(teacher.model)
    with trainable(model, own.values()), compiled(blocks(tower)):
        history = fit(task, schedule, batches, accelerator, checkpoint, "vision", adamw, of=start)
        return history, rounded({f"{prefix}.{name}": p for name, p in own.items()})


def grid(vlm: VLM, side: int) -> int:
    """The side of the square of features that a tower makes of a square image, in features."""
    with torch.no_grad():
        seen = token_features(vlm, pixels(vlm.processor, [Image.new("RGB", (side, side), "white")]))
    return math.isqrt(seen.shape[1])


def blocks(tower: nn.Module) -> list[nn.Module]:
    """The layers of a transformer; none of a tower that is no stack of equal ones."""
    return [block for stack in tower.modules() if isinstance(stack, nn.ModuleList) for block in stack]


def _known(teacher: VLM, batches: list[dict[str, Any]]) -> Tensor:
    """A teacher's features of the images of some batches, [rows, channels]."""
    with torch.no_grad():
        known = torch.cat([token_features(teacher, batch["teacher_pixels"]) for batch in batches])
    cells = batches[0]["cells"].shape[1]
    if known.shape[1] != cells:
        raise ValueError(
            f"teacher: {teacher.source.name} makes {known.shape[1]} tokens of an image, the model that is to "
            f"learn from it {cells}: name a chain with as many"
        )
    return known.flatten(0, 1).float()
