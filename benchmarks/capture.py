"""What pooled states of every layer cost beside the forward that they come from, interleaved in one run.

The model of `driver.py` on the CPU, one thread, a batch of four. `capture` pools two groups inside its hooks
and stops before the head, which the plain forward runs; a forward with the head on the last token only is
there too. The numbers are compared with those pooled from a whole record before anything is timed.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driver
import numpy as np
import torch
import transformers

from vlalign_utils import stats
from vlalign_utils.activations import capture, token_masks
from vlalign_utils.paths import write_atomic

GROUPS = ("image", "text")
BATCH = 4
RESULT = Path(__file__).parent / "results" / "capture.json"


def capture_cost(rounds: int) -> list[dict[str, Any]]:
    """Seconds of each way over those of the plain forward of the same round; below 1 is faster than it."""
    vlm, row = driver.build()
    inputs = {name: value.repeat(BATCH, *[1] * (value.ndim - 1)) for name, value in row.items()}

    def forward(**keep: int) -> None:
        with torch.no_grad():
            vlm.model(**inputs, use_cache=False, **keep)

    def pooled() -> dict[str, torch.Tensor]:
        return capture(vlm, inputs, GROUPS)

    def recorded() -> dict[str, torch.Tensor]:
        run = vlm.record(**inputs)
        return {
            group: torch.stack(
                [(stream * mask[..., None]).sum(1) / mask.sum(-1)[:, None] for stream in run.resid]
            )
            for group, mask in token_masks(vlm, run, GROUPS).items()
        }

    ways: dict[str, Callable[[], Any]] = {
        "plain forward": forward,
        "forward, head on the last token": lambda: forward(logits_to_keep=1),
        "capture, all layers, two groups": pooled,
        "record everything, then pool": recorded,
    }
    expected = recorded()
    for group, value in pooled().items():
        torch.testing.assert_close(value, expected[group], rtol=1e-5, atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    usual, *others = ways
    rows = []
    for name in others:
        # The geometric mean: one round that the machine disturbs must not decide the ratio.
        ratios = np.log(np.array(seconds[name]) / np.array(seconds[usual]))
        bounds = dict(
            zip(
                ("times the cost", "low", "high"),
                np.exp(stats.bootstrap_mean(ratios, seed=0)[:3]),
                strict=True,
            )
        )
        rows.append({"task": "pooled states of every layer", "way": name, "against": usual})
        rows[-1] |= {key: round(float(value), 3) for key, value in bounds.items()}
    return rows


def main() -> None:
    """Measure, print and write `results/capture.json`."""
    torch.set_num_threads(1)
    rounds = 32
    rows = capture_cost(rounds)
    for row in rows:
        ratio = f"{row['times the cost']} [{row['low']}, {row['high']}]"
        print(f"{row['task']}: {row['way']} costs {ratio} times the {row['against']} (N = {rounds} rounds)")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"device": f"CPU, one thread, {platform.machine()}", "rounds": rounds, **versions, "rows": rows}
    write_atomic(RESULT, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
