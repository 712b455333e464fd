"""Short fine-tunes of chosen layers, each from the same weights, which are restored when it is over."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.fingerprints import weights_identity
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.accelerators import Precision, accelerator_for
from vlalign_utils.tuning.answer_loss import Answers, inputs_of, kept_for_backward
from vlalign_utils.tuning.batch_order import step_batches
from vlalign_utils.tuning.lora import adapted
from vlalign_utils.tuning.optimisers import OPTIMISERS, Optimiser
from vlalign_utils.tuning.prefix_cache import Prefixes, data_key
from vlalign_utils.tuning.strategies import Strategy, described, trained
from vlalign_utils.tuning.train_loop import DivergedError, Schedule, fit
from vlalign_utils.tuning.trainable import checkpointed, in_float32, trainable


@dataclass(frozen=True)
class Budget:
    """Length of a fine-tune and how it trains: linear warm-up, half a cosine, gradients clipped at norm 1.

    `steps` of `accumulate` batches each are taken, in an order drawn from `seed`; `lr` is the learning rate
    at its peak. `precision` is "no", "bf16" or "fp16", or "auto" for the model's own; trained weights are
    float32 in any case. `checkpointing` computes the layers again in the backward pass instead of keeping
    their activations. `optimiser` is "adamw", or "adamw8bit" of bitsandbytes. Raises ValueError for a size
    below 1, a rate that is not above 0, and what has another name or needs a package that is not there.

    >>> from vlalign_utils import Budget
    >>> Budget(steps=100, lr=3e-4, accumulate=2).precision
    'auto'
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
    """Train inside the model on the batches, in seeded order, and restore the original weights at the end.

    `with tune(...) as training:` evaluates the tuned model in its body; `training` is the record of the run.
    Strategies that are given the same batches, steps and seed see the same data in the same order.

    `strategy` names the layers that are trained. `batches` are those of one epoch, as `inference.scoring`
    makes them of items, or a function from the epoch's number to its batches, for augmentation. `record_to`
    is a folder for recorded prefixes (`prefix_cache`), at most `limit` bytes of them: the gradients are those
    of the ordinary loop. `checkpoint` is a file that a killed run resumes from: it is written every hundred
    steps and at the end, and one of another model, strategy, budget or other data is refused (where `batches`
    is a function, other data in the first epoch). Without it the last good trained weights alone are kept,
    in the folder for temporary files. Under `accelerate launch` the processes share the `accumulate` batches
    of every step.

    Raises ValueError, before anything is trained, for what does not go together: no batches, layers or a
    connector that the model does not have, offloaded or quantised weights, a precision that model or device
    does not compute in, recording below layer 0. Raises WriteError for a full disk. A run that diverges
    raises nothing: `training.stopped` says why it ended, with the last good weights in place.

    >>> from vlalign_utils import Budget, Strategy, load_suite, load_vlm, tune
    >>> from vlalign_utils.inference.scoring import batches
    >>> vlm = load_vlm("zoo/llava", "aligned")
    >>> data = list(batches(vlm, load_suite("attributes", 8, split="train"), batch_size=4))
    >>> with tune(vlm, Strategy("band", (2, 3)), data, Budget(steps=2, lr=1e-3)) as training:
    ...     len(training.loss), training.stopped  # here the model is tuned
    (2, '')
    """
    opening = batches(0) if callable(batches) else batches
    if not opening:
        raise ValueError("there are no batches to train on")

    def epoch(number: int) -> Sequence[Batch]:
        return batches(number) if callable(batches) and number else opening

    own = trained(vlm, strategy)
    dtypes = [p.dtype for p in own]
    if record_to is not None:
        strategy.check_recordable()
        if callable(batches):
            raise ValueError(
                "batches change from epoch to epoch (augmentation?), so their prefixes cannot be recorded: "
                "give a list of batches, or leave record_to out"
            )
    accelerator = accelerator_for(vlm, budget.precision)
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
            prefixes = Prefixes(vlm, inputs, strategy.check_recordable(), record_to, limit)
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
        steps = partial(step_batches, epoch, budget.seed, budget.steps, budget.accumulate, accelerator)
        stopped = ""
        rows = budget.accumulate * len(opening[0].rows)
        schedule = Schedule(steps=budget.steps, batch_size=rows, lr=budget.lr, warmup=0.1, weight_decay=0)
        make = OPTIMISERS[budget.optimiser]
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
    """Identity of a run beside its schedule: strategy, weights and data that its checkpoint must be of."""
    how = (described(strategy), budget.optimiser, budget.accumulate, accelerator.mixed_precision)
    data = data_key([{**batch.inputs, "answers": batch.answers} for batch in batches])
    return f"{how!r} {weights_identity(vlm.model, pinned=True)} {data}"


@contextmanager
def _adapters(vlm: VLM, strategy: Strategy, seed: int) -> Iterator[list[nn.Parameter]]:
    if not strategy.rank:
        yield []
        return
    with adapted(vlm, strategy.layers, strategy.rank, seed, strategy.part) as new:
        yield new
