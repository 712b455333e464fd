"""Seconds of fine-tunes that take turns, and the name of the processor or GPU they were measured on."""

import platform
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.finetune import Budget, Training, tune
from vlalign_utils.tuning.protocol import TRIAL_SEED, Protocol, training_batches
from vlalign_utils.tuning.strategies import Strategy, strategies
from vlalign_utils.tuning.study_records import Record


@contextmanager
def tuned_alone(vlm: VLM, strategy: Strategy, data: Sequence[Batch], budget: Budget) -> Iterator[Training]:
    """Fine-tune from a recorded prefix where possible, recorded for this run alone: each pays for its own."""
    with tempfile.TemporaryDirectory() as folder:
        record_to = None if strategy.start is None else Path(folder)
        with tune(vlm, strategy, data, budget, record_to) as training:
            yield training


def timed(vlm: VLM, chosen: Sequence[Strategy], protocol: Protocol) -> Record:
    """Seconds of a short fine-tune by each strategy in each round, recording the prefix included.

    The strategies take turns: what else the machine does falls on all of them.
    """
    data = training_batches(vlm, protocol, TRIAL_SEED, protocol.timed_batches)
    budget = Budget(protocol.epochs * len(data), protocol.rates[0])
    taken: dict[str, list[float]] = {strategy.name: [] for strategy in chosen}
    for _ in range(protocol.rounds):
        for strategy in chosen:
            begin = time.monotonic()
            with tuned_alone(vlm, strategy, data, budget):
                taken[strategy.name].append(round(time.monotonic() - begin, 3))
    return {"taken": taken, "machine": machine(vlm.device.type)}


def side_by_side(vlm: VLM, protocol: Protocol, rounds: int) -> dict[str, float]:
    """Median seconds of an epoch of a few batches: full tuning, and the band, ordinary and recorded.

    They take turns. Everything counts, from the call of `tune` to its body; a later epoch from a recorded
    prefix is what a fine-tune of two epochs takes more than one of a single epoch.
    """
    data = training_batches(vlm, protocol, TRIAL_SEED, protocol.timed_batches)
    known = strategies(vlm.n_layers, protocol.band)
    taken: dict[str, list[float]] = {}

    def seconds(strategy: Strategy, recorded: bool, epochs: int = 1) -> float:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.monotonic()
            budget = Budget(epochs * len(data), protocol.rates[0])
            with tune(vlm, strategy, data, budget, Path(folder) if recorded else None):
                return time.monotonic() - begin

    for _ in range(rounds):
        first = seconds(known["band"], recorded=True)
        found = {
            "full": seconds(known["full"], recorded=False),
            "band, ordinary loop": seconds(known["band"], recorded=False),
            "band, first epoch, which records": first,
            "band, each later epoch": seconds(known["band"], recorded=True, epochs=2) - first,
        }
        for name, value in found.items():
            taken.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in taken.items()}


def machine(device: str) -> str:
    """Name of the GPU for "cuda", or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
