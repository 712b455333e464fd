"""Memory plan of a fine-tune, computed from a configuration before any weight is loaded.

`python -m vlalign_utils plan MODEL --band 8 25` prints it for a band beside full tuning.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText, PreTrainedConfig

from vlalign_utils.driver.connector import connector
from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.loading.checkpoint import fetch_small, locate
from vlalign_utils.loading.config import read_config
from vlalign_utils.loading.memory import bytes_needed
from vlalign_utils.loading.placement import DTYPES
from vlalign_utils.tuning.activation_memory import footprint
from vlalign_utils.tuning.optimisers import Optimiser
from vlalign_utils.tuning.strategies import Strategy, trained

# Share left free for what no count of tensors shows: gaps in the allocator, workspaces, the driver itself.
RESERVE = 0.1
# Of bitsandbytes' 8-bit AdamW: two codes and, per block, two float32 scales; small tensors stay in float32.
# Block size of 0.44 and later: github.com/bitsandbytes-foundation/bitsandbytes/pull/1365.
_BLOCK, _SMALL = 256, 4096


@dataclass(frozen=True)
class Plan:
    """Bytes that one device holds in a fine-tune; `prefixes` are bytes on disk, without an image's features.

    `step` is the most that a step adds to weights and optimiser states at any one time: gradients,
    activations and all that is computed on the way, or, if that is more, the optimiser's own work. It is
    less than the sum of its parts, because activations go while gradients come.
    """

    strategy: Strategy
    batch_size: int
    tokens: int
    dtype: str
    optimiser: str
    checkpointing: bool
    devices: int
    parameters: int  # how many are trained
    frozen: int  # weights in the model's precision
    trained: int  # weights in float32, LoRA matrices among them
    gradients: int  # float32, as what they belong to
    states: int  # of the optimiser
    activations: int  # kept for the backward pass of one micro-batch
    loss: int  # float32 log-probabilities of the answers' tokens, kept as well
    step: int
    prefixes: int  # recorded states that enter the lowest trained layer, of all items

    @property
    def weights(self) -> int:
        """All weights, frozen and trained."""
        return self.frozen + self.trained

    @property
    def total(self) -> int:
        """The most that is held at once by one process that trains alone."""
        return self.weights + self.states + self.step

    @property
    def per_device(self) -> int:
        """Bytes of each of `devices`: every one holds everything, nothing is shared out.

        DistributedDataParallel adds buckets as large as the gradients (torch's documentation of
        `gradient_as_bucket_view`).
        """
        return self.total + (self.gradients if self.devices > 1 else 0)

    def fits(self, available: int) -> bool:
        """Return whether it fits a device with so many free bytes, a tenth of them left alone."""
        return self.per_device <= (1 - RESERVE) * available

    def advice(self, available: int) -> str:
        """One sentence: it fits, or what to change so that it may."""
        spare = (1 - RESERVE) * available
        if self.fits(available):
            return f"{self.strategy.name} fits, with {_gib(spare - self.per_device)} to spare."
        need = f"{self.strategy.name} needs {_gib(self.per_device)}, {_gib(spare)} can be used"
        if self.frozen > spare:
            return f"{need}: its frozen weights alone are more, take a smaller model or a larger device."
        ways = [] if self.checkpointing else ["checkpointing"]
        if self.batch_size > 1:
            ways.append("a smaller batch_size with accumulated gradients")
        lasting = [] if self.optimiser == "adamw8bit" else ['optimiser="adamw8bit"']
        if not self.strategy.rank:
            lasting += ["fewer layers", "LoRA in the same layers"]
        larger = self.trained + self.gradients + self.states > self.activations + self.loss
        ways = lasting + ways if larger else ways + lasting
        return f"{need}: try {', '.join(ways) or 'fewer tokens or a larger device'}."

    def __str__(self) -> str:
        """The table of this plan."""
        return table([self])


def plan(
    model: str | Path | PreTrainedConfig | nn.Module | VLM,
    strategy: Strategy,
    batch_size: int,
    tokens: int,
    items: int = 0,
    dtype: str | torch.dtype = "bfloat16",
    optimiser: Optimiser = "adamw",
    checkpointing: bool = True,
    accumulate: int = 1,
    devices: int = 1,
    answers: int | None = None,
    revision: str | None = None,
) -> Plan:
    """Plan the memory of training a model by a strategy; of a folder or hub id only config.json is read.

    `batch_size` sequences of `tokens`, `answers` of them with a loss (None: all), go through one device at
    once; gradients of `accumulate` such batches are added up. Trained weights are float32, with float32
    gradients and moments, whatever the `dtype` of the others, and are multiplied in that under autocast.
    Gradients are taken to be freed between an update and the next forward. `items` count those whose
    prefix is recorded. A connector's activations are an estimate from above: of every matrix, its input
    and output for all tokens. The vision tower is counted as weights: it is frozen, and keeps nothing.

    Raises ValueError naming what is wrong, and for a decoder that cannot run without an image.
    """
    precision = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if precision is None or precision not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r}, expected one of {', '.join(DTYPES)}")
    if optimiser not in get_args(Optimiser):
        raise ValueError(f"optimiser={optimiser!r}, expected one of {', '.join(get_args(Optimiser))}")
    counts = {"batch_size": batch_size, "tokens": tokens, "accumulate": accumulate, "devices": devices}
    counts |= {"answers": tokens if answers is None else answers}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")
    if items < 0 or counts["answers"] > tokens:
        raise ValueError(f"items={items}, answers={answers}: expected 0 or more, and at most {tokens}")
    vlm = _empty(model, precision, revision)
    own = trained(vlm, strategy)
    width, size = vlm.model.get_output_embeddings().out_features, precision.itemsize
    frozen = bytes_needed(vlm.model) - sum(p.numel() * p.element_size() for p in own)
    bridge = [p.shape for p in connector(vlm) if p.ndim > 1] if strategy.connector else []
    bridging = sum(batch_size * tokens * size * (s[0] + s[1:].numel()) for s in bridge)
    if size < 4:  # autocast keeps a copy of each matrix that it has rounded
        bridging += size * sum(s.numel() for s in bridge)
    found = footprint(vlm, strategy, batch_size, tokens, counts["answers"], checkpointing, accumulate > 1)
    sizes = found.trained
    gradients = 4 * sum(sizes)
    loss = 4 * batch_size * counts["answers"] * width
    backward = found.peak + found.unreached + bridging + (gradients if accumulate > 1 else 0)
    # AdamW takes all weights at once where it can, and then needs as much again (torch's documentation).
    update = gradients * (2 if optimiser == "adamw" else 1)
    return Plan(
        strategy=strategy,
        batch_size=batch_size,
        tokens=tokens,
        dtype=str(precision).removeprefix("torch."),
        optimiser=optimiser,
        checkpointing=checkpointing,
        devices=devices,
        parameters=sum(sizes),
        frozen=frozen,
        trained=4 * sum(sizes),
        gradients=gradients,
        states=sum(_states(n, optimiser) for n in sizes),
        activations=found.kept - loss + bridging,
        loss=loss,
        step=max(backward, update),
        prefixes=items * found.entering // batch_size * size if strategy.start is not None else 0,
    )


def _states(numbers: int, optimiser: str) -> int:
    if optimiser == "adamw" or numbers < _SMALL:
        return 2 * 4 * numbers
    return 2 * (numbers + 4 * -(-numbers // _BLOCK))


def _empty(model: Any, precision: torch.dtype, revision: str | None) -> VLM:
    """The model on the meta device, in a precision; whatever is given stays as it is."""
    kind: Any = AutoModelForImageTextToText
    if isinstance(model, VLM):
        model = model.model
    config: Any = deepcopy(model.config if isinstance(model, nn.Module) else model)
    if isinstance(model, nn.Module):
        kind = type(model)
    elif isinstance(model, PreTrainedConfig):
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(f"{type(config).__name__} is not of an image-text-to-text model")
    else:
        checkpoint = locate(model, revision=revision)
        if "config.json" not in checkpoint.files:
            raise ValueError(f"{checkpoint.name} has no config.json: it is not a transformers model")
        config = read_config(checkpoint.name, fetch_small(checkpoint))
        config._attn_implementation = None  # not what the machine it was trained on had
    build = kind.from_config if kind is AutoModelForImageTextToText else kind._from_config
    with without_messages(), torch.device("meta"):
        return VLM(build(config, dtype=precision))


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def table(plans: Sequence[Plan]) -> str:
    """Plans side by side, in GiB."""
    rows = {
        "trained, million parameters": [f"{p.parameters / 1e6:.1f}" for p in plans],
        "frozen weights": [_gib(p.frozen) for p in plans],
        "trained weights, float32": [_gib(p.trained) for p in plans],
        "gradients": [_gib(p.gradients) for p in plans],
        "optimiser states": [_gib(p.states) for p in plans],
        "activations kept": [_gib(p.activations) for p in plans],
        "loss": [_gib(p.loss) for p in plans],
        "most that a step adds": [_gib(p.step) for p in plans],
        "total": [_gib(p.total) for p in plans],
        "on each device": [_gib(p.per_device) for p in plans],
        "prefixes on disk": [_gib(p.prefixes) for p in plans],
    }
    left = max(map(len, rows))
    wide = [max(12, len(p.strategy.name)) for p in plans]
    head = "".join(f"  {p.strategy.name:>{w}}" for p, w in zip(plans, wide, strict=True))
    lines = [
        f"{name:<{left}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, wide, strict=True))
        for name, cells in rows.items()
    ]
    p = plans[0]
    how = (
        f"{p.devices} x batch of {p.batch_size} x {p.tokens} tokens, {p.dtype}, {p.optimiser}, "
        f"{'with' if p.checkpointing else 'no'} checkpointing"
    )
    return "\n".join([how, " " * left + head, *lines])


def beside_full(
    model: str | Path, band: tuple[int, int], rank: int, connector: bool, sizes: Mapping[str, Any]
) -> list[Plan]:
    """Plans of a band [first, stop) and of full tuning; (0, 0) is no band. `sizes` go to `plan`.

    Raises ValueError as `plan` does, and FileNotFoundError for a folder that is not there.
    """
    n_layers = _empty(model, torch.bfloat16, sizes.get("revision")).n_layers
    asked = [Strategy("full", tuple(range(n_layers)), connector=True, language=True)]
    if band != (0, 0) or connector:
        name = f"[{band[0]}, {band[1]})" if band != (0, 0) else "connector"
        asked.insert(0, Strategy(name, tuple(range(*band)), connector, rank))
    return [plan(model, strategy, **sizes) for strategy in asked]
