"""Time several ways to one result, interleaved, after checking that they give it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlalign_utils.evidence import intervals

Way = Callable[[], Tensor]
Row = dict[str, Any]


def compare(task: str, ways: Mapping[str, Way], rounds: int, tolerance: float = 1e-5) -> list[Row]:
    """Speed-up of each way over the first one, with a 95 % interval over rounds.

    The first call of each way is not timed. Raises AssertionError when a way's result differs from the
    first one's by more than `tolerance` of its largest number.
    """
    usual, *others = ways
    expected, difference = None, {}
    for name, way in ways.items():
        found = way().float()
        expected = found if expected is None else expected
        difference[name] = ((found - expected).abs().max() / expected.abs().max()).item()
        if difference[name] > tolerance:
            raise AssertionError(f"{task}: {name} differs from {usual} by {difference[name]:.2g}")
    seconds = measure(ways, rounds)
    rows = [ratio(task, name, usual, seconds) | {"difference": difference[name]} for name in others]
    show(rows)
    return rows


def show(rows: list[Row]) -> None:
    """Print one line a row."""
    for row in rows:
        times = f"{row['times faster']} [{row['low']}, {row['high']}] times as fast"
        print(f"{row['task']}: {row['way']} is {times} as {row['against']}", flush=True)


def measure(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            _wait()
            start = time.perf_counter()
            way()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(task: str, name: str, usual: str, seconds: Mapping[str, list[float]]) -> Row:
    """One row: the geometric mean of the ratios of each round, which one disturbed round does not decide."""
    logs = np.log(np.array(seconds[usual]) / np.array(seconds[name]))
    value, low, high, _ = intervals.bootstrap_mean(logs, seed=0)
    bounds = {
        key: round(float(np.exp(x)), 2) for key, x in (("times faster", value), ("low", low), ("high", high))
    }
    median = {"seconds": _short(seconds[name]), "seconds, usual": _short(seconds[usual])}
    return {"task": task, "way": name, "against": usual, **bounds, **median, "rounds": len(logs)}


def _short(seconds: list[float]) -> float:
    return float(f"{np.median(seconds):.3g}")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
