"""Training loop of all that is trained, on any device: resumable to the same weights."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from vlalign_utils.evidence.strict import Closed
from vlalign_utils.paths import sweep
from vlalign_utils.tuning.training_state import load_state, save_state

SAVE_EVERY = 100  # steps
CURVE_POINTS = 100
BEGINNING = 10  # steps whose mean loss is what a run that diverges rises above
RISE = 4.0  # times that mean

Make = Callable[[dict[str, nn.Parameter], "Schedule"], list[torch.optim.Optimizer]]


class Schedule(Closed):
    """Length and learning rate of a training run: `lr` is the peak, reached after `warmup` of the steps."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)  # rows, over all processes
    lr: float = Field(gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)


def rate(schedule: Schedule, step: int) -> float:
    """Learning rate at a step: linear warm-up, then half a cosine down to 2 % of the peak."""
    warm = max(1, round(schedule.warmup * schedule.steps))
    if step < warm:
        return schedule.lr * (step + 1) / warm
    progress = (step - warm) / max(1, schedule.steps - warm)
    return schedule.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class History:
    """Progress of a training run: steps done, mean loss at intervals, wall-clock seconds over all runs."""

    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def note(self, loss: float) -> bool:
        """Note a step's loss; return whether training diverged: not finite, or far above where it began."""
        if len(self.first) < BEGINNING:
            self.first.append(loss)
        self.recent = [*self.recent, loss][-BEGINNING:]
        risen = self.step > 2 * BEGINNING and sum(self.recent) > RISE * sum(self.first)
        return risen or not math.isfinite(loss)


class DivergedError(FloatingPointError):
    """Training got worse without bound; the parameters are those of the last checkpoint."""

    def __init__(self, message: str, history: History) -> None:
        """Keep the history that led there."""
        super().__init__(message)
        self.history = history


def of_all(counts: Tensor) -> Tensor:
    """Mean of counts over the processes: dividing by it makes the mean of their losses that of all rows."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    total = counts.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def fit(
    task: nn.Module,
    schedule: Schedule,
    batches: Callable[[int], Iterator[Any]],
    accelerator: Accelerator,
    checkpoint: Path,
    label: str,
    make: Make,
    bar: bool = True,
    resumable: bool = True,
    of: str = "",
) -> History:
    """Train the parameters of `task` that require gradients; called with a batch it returns the loss.

    `batches(first)` yields the batches from step `first` on, and must give a step the same batch however
    the run is cut, so that a killed run resumes from `checkpoint` to the weights of an uninterrupted one
    (of a task without dropout). A tuple is one step of several batches, each a tuple of arguments: the task
    is called with each, and their losses add up. `make` gives the optimisers of the trained parameters by
    name; a group may have a `times` that multiplies the schedule's rate. A run that is not `resumable` keeps
    the last good weights in `checkpoint` alone, which are a third of what resuming needs. `of` names what
    else decides the result, such as the start and the data: a checkpoint of others is refused.
    Raises ValueError when there are fewer rows than processes or the checkpoint is damaged or of another run,
    WriteError when it cannot be written, and DivergedError, with the last checkpoint's weights in place, when
    the loss, gradients or weights are not finite or the loss rises far above its beginning.
    """
    if schedule.batch_size < accelerator.num_processes:
        raise ValueError(
            f"{label}: batch_size is {schedule.batch_size}, less than one row for each of the "
            f"{accelerator.num_processes} processes"
        )
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    run = {"label": label, "schedule": schedule.model_dump(), "trained": sorted(trained)}
    run |= {"of": of} if of else {}
    sweep(checkpoint.parent)
    state = _stored(checkpoint, trained, run)
    history = History(**state["history"]) if state else History()
    wrapped, *optimizers = accelerator.prepare(task, *make(trained, schedule))
    for optimizer, stored in zip(optimizers, state["optimizers"] if state else [], strict=bool(state)):
        optimizer.load_state_dict(stored)
    window: list[float] = list(state["window"]) if state else []
    kept = optimizers if resumable else []
    if not state and accelerator.is_main_process:
        _save(checkpoint, trained, kept, history, window, run)
    start, before = time.monotonic(), history.seconds
    shown = tqdm(
        total=schedule.steps,
        initial=history.step,
        desc=label,
        mininterval=10,
        disable=not (bar and accelerator.is_main_process),
    )
    for step, batch in enumerate(batches(history.step), history.step):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = accelerator.reduce(_backward(wrapped, batch, accelerator), "mean").item()
        diverged = history.note(loss)
        norm = accelerator.clip_grad_norm_(trained.values(), schedule.clip)
        # Gradients in half precision may be too large now and then: their scaler skips the step by itself.
        if diverged or not (torch.isfinite(norm) or accelerator.scaler):
            _go_back(checkpoint, trained)
            what = f"the loss is {loss:.3g}" if diverged else "the gradients are not finite"
            raise DivergedError(f"{label}: {what} at step {step}; lower the learning rate", history)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("times", 1.0) * rate(schedule, step)
            optimizer.step()
        window.append(loss)
        history.step = step + 1
        history.seconds = before + time.monotonic() - start
        if history.step % max(1, schedule.steps // CURVE_POINTS) == 0:
            history.curve.append((history.step, round(sum(window) / len(window), 5)))
            shown.set_postfix(
                loss=f"{history.curve[-1][1]:.3f}", lr=f"{rate(schedule, step):.1e}", refresh=False
            )
            window.clear()
        last = history.step == schedule.steps
        ends = last or history.step % SAVE_EVERY == 0
        if ends and not all(p.isfinite().all() for p in trained.values()):
            _go_back(checkpoint, trained)
            raise DivergedError(
                f"{label}: weights are not finite after step {step}; lower the learning rate", history
            )
        if ends and (resumable or not last) and accelerator.is_main_process:
            _save(checkpoint, trained, kept, history, window, run)
        shown.update()
    shown.close()
    accelerator.wait_for_everyone()
    if accelerator.device.type != "cpu":  # a collection takes half a second; a GPU is short of memory
        accelerator.free_memory()
    return history


def _backward(wrapped: nn.Module, batch: Any, accelerator: Accelerator) -> Tensor:
    """Gradients of one step, of one batch or of several; its loss."""
    parts = batch if isinstance(batch, tuple) else ((batch,),)
    losses = []
    for number, part in enumerate(parts):
        # Processes exchange gradients once, with the last of the batches.
        unsynchronised = accelerator.no_sync(wrapped) if number < len(parts) - 1 else nullcontext()
        with unsynchronised:
            loss = wrapped(*send_to_device(part, accelerator.device))
            accelerator.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _save(
    path: Path,
    trained: dict[str, nn.Parameter],
    optimizers: list[Any],
    history: History,
    window: list[float],
    run: dict[str, Any],
) -> None:
    weights = {name: p.detach() for name, p in trained.items()}
    states = [optimizer.state_dict() for optimizer in optimizers]
    kept = {"weights": weights, "optimizers": states, "history": vars(history), "window": window, "run": run}
    save_state(path, kept)


def _go_back(path: Path, trained: dict[str, nn.Parameter]) -> None:
    _stored(path, trained)
    for parameter in trained.values():  # only the main process has a checkpoint for sure
        broadcast(parameter.data)


def _stored(
    path: Path, trained: dict[str, nn.Parameter], run: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    state: dict[str, Any] = load_state(path)
    shapes = {name: value.shape for name, value in state["weights"].items()}
    other = shapes != {name: parameter.shape for name, parameter in trained.items()}
    if run is not None and (other or state.get("run", run) != run):
        raise ValueError(
            f"{path} is the checkpoint of another run than {run['label']!r}: delete it, or move it"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["weights"][name])
    return state
