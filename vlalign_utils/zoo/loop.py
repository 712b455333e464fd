"""One training loop for every stage: AdamW, warm-up and cosine, resumable to the same weights."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from vlalign_utils.zoo.recipe import Schedule

SAVE_EVERY = 100  # steps
CURVE_POINTS = 100


def rate(schedule: Schedule, step: int) -> float:
    """Learning rate at a step: linear warm-up, then half a cosine down to 2 % of the peak."""
    warm = max(1, round(schedule.warmup * schedule.steps))
    if step < warm:
        return schedule.lr * (step + 1) / warm
    progress = (step - warm) / max(1, schedule.steps - warm)
    return schedule.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class History:
    """What a stage saw: steps done, mean loss at intervals, wall-clock seconds over all runs."""

    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)


def fit(
    modules: nn.Module,
    schedule: Schedule,
    batches: Callable[[int], Iterator[Any]],
    loss_of: Callable[[Any], Float[Tensor, ""]],
    checkpoint: Path,
    label: str,
) -> History:
    """Train the parameters of `modules` that require gradients.

    `batches(first)` yields the batches from step `first` on, and must give a step the same batch however
    the run is cut, so that a killed run resumes from `checkpoint` to the weights of an uninterrupted one.
    """
    trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=schedule.lr, betas=(0.9, 0.98), weight_decay=schedule.weight_decay
    )
    history = _resume(checkpoint, trained, optimizer)
    start, before = time.monotonic(), history.seconds
    window: list[float] = []
    bar = tqdm(total=schedule.steps, initial=history.step, desc=label, mininterval=10)
    for step, batch in enumerate(batches(history.step), history.step):
        loss = loss_of(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{label}: the loss is {loss.item()} at step {step}; lower the learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), schedule.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(schedule, step)
        optimizer.step()
        window.append(loss.item())
        history.step = step + 1
        history.seconds = before + time.monotonic() - start
        if history.step % max(1, schedule.steps // CURVE_POINTS) == 0:
            history.curve.append((history.step, round(sum(window) / len(window), 5)))
            bar.set_postfix(loss=f"{history.curve[-1][1]:.3f}")
            window.clear()
        if history.step % SAVE_EVERY == 0 or history.step == schedule.steps:
            _save(checkpoint, trained, optimizer, history)
        bar.update()
    bar.close()
    return history


def _save(
    path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, history: History
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    weights = {name: p.detach() for name, p in trained.items()}
    torch.save({"weights": weights, "optimizer": optimizer.state_dict(), "history": vars(history)}, partial)
    partial.replace(path)


def _resume(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> History:
    if not path.is_file():
        return History()
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return History(**state["history"])
