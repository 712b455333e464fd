"""Short fine-tunes of chosen layers, each from the same weights, which are restored when it is over."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference.fingerprints import weights_identity
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.answer_loss import Answers, inputs_of, kept_for_backward
from vlalign_utils.tuning.lora import adapted
from vlalign_utils.tuning.prefix_cache import Prefixes, data_key
from vlalign_utils.tuning.strategies import Strategy, trained
from vlalign_utils.tuning.train_loop import DivergedError, Schedule, fit
from vlalign_utils.tuning.trainable import checkpointed, in_float32, trainable

Optimiser = Literal["adamw", "adamw8bit"]
Precision = Literal["auto", "no", "bf16", "fp16"]
HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Budget:
    """How long and how a strategy trains: linear warm-up, half a cosine, gradients clipped at norm 1.

    A step takes `accumulate` batches. `precision` "auto" computes in the model's own; trained weights are
    float32 in any case. `checkpointing` computes the layers again in the backward pass.
    """

    steps: int
    lr: float
    seed: int = 0
    accumulate: int = 1
    precision: Precision = "auto"
    checkpointing: bool = False
    optimiser: Optimiser = "adamw"

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be trained with."""
        for name, least in (("steps", 1), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr is {self.lr}, expected a number above 0")
        for name, known in (("optimiser", Optimiser), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(known))}"
                )
        if self.optimiser == "adamw8bit" and find_spec("bitsandbytes") is None:
            raise ValueError(
                "optimiser 'adamw8bit' needs the package bitsandbytes: install it, or take 'adamw'"
            )


@dataclass(frozen=True)
class Training:
    """Record of one fine-tune: mean loss at steps, seconds of training, and what was held in memory for it.

    `memory` (bytes) counts activations kept for the backward pass, gradients and AdamW's states of a step on
    the first batch: it is exact and the same on every machine, unlike the process' peak. `stopped` says why a
    run ended early, after which the model holds the last good weights.
    """

    strategy: Strategy
    loss: list[tuple[int, float]]
    seconds: float
    parameters: int
    memory: int
    stopped: str = ""


@contextmanager
def tune(
    vlm: VLM,
    strategy: Strategy,
    batches: Sequence[Batch] | Callable[[int], Sequence[Batch]],
    budget: Budget,
    record_to: Path | None = None,
    checkpoint: Path | None = None,
    limit: int | None = None,
) -> Iterator[Training]:
    """Train inside the model on the batches, in seeded order, and give the original weights back at the end.

    `with tune(...) as training:` evaluates the tuned model in its body. Strategies that are given the same
    batches, steps and seed see the same data in the same order. `batches` may be a function from the epoch's
    number to its batches, for augmentation that changes with it.

    `record_to` is a folder for recorded prefixes (see `prefixes`), at most `limit` bytes of them: the
    gradients are those of the ordinary loop. `checkpoint` is a file that a killed run resumes from: it is
    written every hundred steps and at the end, and one of another model, strategy, budget or other data is
    refused (where `batches` is a function, other data in the first epoch). Without it the trained weights
    alone, to go back to, are kept for as long in the folder for temporary files.
    Under `accelerate launch` the processes share the `accumulate` batches of every step.

    Raises ValueError, before anything is trained, for what does not go together.
    """
    opening = batches(0) if callable(batches) else batches
    if not opening:
        raise ValueError("there are no batches to train on")

    def epoch(number: int) -> Sequence[Batch]:
        return batches(number) if callable(batches) and number else opening

    own = trained(vlm, strategy)
    dtypes = [p.dtype for p in own]
    if record_to is not None:
        _check_recordable(vlm, strategy, batches)
    accelerator = _accelerator(vlm, budget)
    if budget.accumulate % accelerator.num_processes:
        raise ValueError(
            f"accumulate is {budget.accumulate}: the {accelerator.num_processes} processes share the batches "
            "of a step, so it must be a multiple of their number"
        )
    # Recorded as the ordinary loop computes it, and before anything is changed.
    with accelerator.autocast():
        prefixes = None
        if record_to is not None:
            inputs = [inputs_of(vlm, batch) for batch in opening]
            prefixes = Prefixes(vlm, inputs, strategy.start or 0, record_to, limit)
    resumable = checkpoint is not None
    of = _made_of(vlm, strategy, budget, accelerator, opening) if resumable else ""
    with ExitStack() as undo:
        new = undo.enter_context(_adapters(vlm, strategy, budget.seed))
        parameters = [*own, *new]
        undo.enter_context(in_float32(own))
        undo.enter_context(trainable(vlm.model, parameters))
        recomputed = vlm.layers[strategy.start or 0 :] if budget.checkpointing else ()
        if checkpoint is None:
            checkpoint = Path(undo.enter_context(tempfile.TemporaryDirectory())) / "state"
        task = Answers(vlm, prefixes)
        size = sum(p.numel() * p.element_size() for p in parameters)
        with accelerator.autocast(), checkpointed(recomputed):
            memory = 3 * size + kept_for_backward(vlm, lambda: task(0, opening[0], 1.0))
        steps = _steps(epoch, budget, accelerator)
        stopped = ""
        rows = budget.accumulate * len(opening[0].rows)
        schedule = Schedule(steps=budget.steps, batch_size=rows, lr=budget.lr, warmup=0.1, weight_decay=0)
        make = _adamw if budget.optimiser == "adamw" else _adamw8bit
        try:
            with checkpointed(recomputed):
                label, bar = f"{strategy.name}, seed {budget.seed}", sys.stderr.isatty()
                history = fit(task, schedule, steps, accelerator, checkpoint, label, make, bar, resumable, of)
        except DivergedError as error:
            history, stopped = error.history, str(error)
        for parameter, dtype in zip(own, dtypes, strict=True):  # the body runs without automatic precision
            parameter.data = parameter.data.to(dtype)
        yield Training(
            strategy, history.curve, history.seconds, sum(p.numel() for p in parameters), memory, stopped
        )


def gradients(vlm: VLM, strategy: Strategy, batch: Batch) -> list[Tensor]:
    """Gradients of one batch by the ordinary forward, of the weights that a strategy trains.

    Raises ValueError as `strategies.trained` does.
    """
    own = trained(vlm, strategy)
    with (
        _adapters(vlm, strategy, 0) as new,
        in_float32(own),
        trainable(vlm.model, parameters := [*own, *new]),
    ):
        loss = Answers(vlm, None)(0, batch, 1.0)
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def _made_of(
    vlm: VLM, strategy: Strategy, budget: Budget, accelerator: Accelerator, batches: Sequence[Batch]
) -> str:
    """What a checkpoint must be of, beside the schedule."""
    how = (asdict(strategy), budget.optimiser, budget.accumulate, accelerator.mixed_precision)
    data = data_key([{**batch.inputs, "answers": batch.answers} for batch in batches])
    return f"{how!r} {weights_identity(vlm.model, pinned=True)} {data}"


def _check_recordable(
    vlm: VLM, strategy: Strategy, batches: Sequence[Batch] | Callable[[int], Sequence[Batch]]
) -> None:
    if strategy.start is None:
        raise ValueError(
            f"strategy {strategy.name!r} trains the connector, below every layer: nothing stays the same "
            "that could be recorded; leave record_to out"
        )
    if callable(batches):
        raise ValueError(
            "batches change from epoch to epoch (augmentation?), so their prefixes cannot be recorded: "
            "give a list of batches, or leave record_to out"
        )


def _accelerator(vlm: VLM, budget: Budget) -> Accelerator:
    own = HALF.get(vlm.model.dtype, "no")
    precision = own if budget.precision == "auto" else budget.precision
    if own not in ("no", precision):
        raise ValueError(
            f"the model's weights are {own}, precision is {budget.precision!r}: pass {own!r} or 'auto', or "
            'load the model with dtype="float32"'
        )
    cpu = vlm.device.type == "cpu"
    if precision == "fp16" and cpu:
        raise ValueError(
            "precision 'fp16' needs a cuda device: load the model with dtype=\"float32\", "
            "and pass 'bf16' or 'no'"
        )
    # accelerate keeps one precision for a process, but one model may follow another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=cpu)


@contextmanager
def _adapters(vlm: VLM, strategy: Strategy, seed: int) -> Iterator[list[nn.Parameter]]:
    if not strategy.rank:
        yield []
        return
    with adapted(vlm, strategy.layers, strategy.rank, seed) as new:
        yield new


def _steps(
    epoch: Callable[[int], Sequence[Batch]], budget: Budget, accelerator: Accelerator
) -> Callable[[int], Iterator[tuple[tuple[int, Batch, float], ...]]]:
    """This process' share of the batches of every step, each with its number and its part of the loss."""

    def turns() -> Iterator[tuple[int, Batch]]:
        order, number = rng(budget.seed, "batch order"), 0
        while True:
            batches = epoch(number)
            yield from ((int(i), batches[i]) for i in order.permutation(len(batches)))
            number += 1

    def steps(first: int) -> Iterator[tuple[tuple[int, Batch, float], ...]]:
        left = turns()
        for step in range(budget.steps):
            chosen = [next(left) for _ in range(budget.accumulate)]
            if step < first:
                continue
            tokens = [int((batch.answers >= 0).sum()) for _, batch in chosen]
            # Processes take the mean of their gradients, not the sum.
            shares = [accelerator.num_processes * n / sum(tokens) for n in tokens]
            parts = [(i, batch, share) for (i, batch), share in zip(chosen, shares, strict=True)]
            yield tuple(parts[accelerator.process_index :: accelerator.num_processes])

    return steps


def _adamw(trained: dict[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.AdamW(
            trained.values(), schedule.lr, betas=(0.9, 0.95), weight_decay=schedule.weight_decay, fused=True
        )
    ]


def _adamw8bit(trained: dict[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    from bitsandbytes.optim import AdamW8bit

    return [AdamW8bit(trained.values(), schedule.lr, betas=(0.9, 0.95), weight_decay=schedule.weight_decay)]
