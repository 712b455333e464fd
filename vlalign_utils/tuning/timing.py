"""Seconds of fine-tunes that take turns, and the name of the processor or GPU they were measured on."""

import platform
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.finetune import Budget, tune
from vlalign_utils.tuning.protocol import EPOCHS, TRIAL_SEED, Protocol, training_batches
from vlalign_utils.tuning.strategies import Strategy, strategies
from vlalign_utils.tuning.study_records import Record


def timed(vlm: VLM, chosen: Sequence[Strategy], protocol: Protocol) -> Record:
    """Seconds of a short fine-tune by each strategy in each round: by ordinary loops, and from prefixes.

    Each is of a few batches in `EPOCHS` epochs; recording a prefix counts. The strategies take turns, each
    round beginning with another: what else the machine does falls on all of them.
    """
    data = training_batches(vlm, protocol, TRIAL_SEED, protocol.timed_batches)
    taken: dict[str, list[float]] = {strategy.name: [] for strategy in chosen}
    recorded: dict[str, list[float]] = {s.name: [] for s in chosen if s.start is not None}
    _seconds(vlm, chosen[0], data, protocol, 1)  # what a process does once counts for none of them
    for turn in range(protocol.rounds):
        for strategy in (*chosen[turn % len(chosen) :], *chosen[: turn % len(chosen)]):
            taken[strategy.name].append(_seconds(vlm, strategy, data, protocol, EPOCHS))
            if strategy.name in recorded:
                seconds = _seconds(vlm, strategy, data, protocol, EPOCHS, record=True)
                recorded[strategy.name].append(seconds)
    return {"taken": taken, "from_prefixes": recorded, "machine": machine(vlm.device.type)}


def _seconds(
    vlm: VLM, strategy: Strategy, data: Sequence[Batch], protocol: Protocol, epochs: int, record: bool = False
) -> float:
    """Seconds of a fine-tune of these batches: all counts, from the call of `tune` to its body."""
    budget = Budget(epochs * len(data), protocol.rates[0], precision=protocol.precision)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        with tune(vlm, strategy, data, budget, Path(folder) if record else None):
            return round(time.monotonic() - begin, 3)


def side_by_side(vlm: VLM, protocol: Protocol, rounds: int) -> dict[str, float]:
    """Median seconds of an epoch of a few batches: full tuning, and the band, ordinary and recorded.

    They take turns. A later epoch from a recorded prefix is what a fine-tune of two epochs takes more than
    one of a single epoch.
    """
    data = training_batches(vlm, protocol, TRIAL_SEED, protocol.timed_batches)
    known = strategies(vlm.n_layers, protocol.band)
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        first = _seconds(vlm, known["band"], data, protocol, 1, record=True)
        found = {
            "full": _seconds(vlm, known["full"], data, protocol, 1),
            "band, ordinary loop": _seconds(vlm, known["band"], data, protocol, 1),
            "band, first epoch, which records": first,
            "band, each later epoch": _seconds(vlm, known["band"], data, protocol, 2, record=True) - first,
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
