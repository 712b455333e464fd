"""Fine-tunes of a band of decoder layers against full tuning: time at equal steps, and peak memory.

A way is timed from the call of `tune` to its end: recording into an empty folder, all steps, restoring the
weights. Left out of every way is what `tune` does once however long it trains, and what costs full tuning
most: the files of weights and optimiser, and the trial step that counts memory.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.memory import MIB, peak
from benchmarks.sizes import ARCHITECTURES, Size, build
from benchmarks.timing import Row, measure, ratio, show
from vlalign_utils import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.loading.memory import bytes_needed
from vlalign_utils.tuning.answer_loss import inputs_of
from vlalign_utils.tuning.costs import of_training
from vlalign_utils.tuning.finetune import Budget, tune
from vlalign_utils.tuning.flops import forward_flops
from vlalign_utils.tuning.memory_plan import plan
from vlalign_utils.tuning.strategies import Strategy, strategies

SIDE = 224  # pixels of an image on a processor, at most: a full step of 12 layers then takes about 2 s
ANSWER = 8  # tokens
RANK = 16
FULL = "full tuning"
ORDINARY, RECORDED = "ordinary loop", "recorded prefix"

Way = tuple[Strategy, bool]  # what is trained, and whether from a recorded prefix


def rows(size: Size, name: str) -> list[Row]:
    """Bands of one architecture, one epoch and three.

    On a GPU, where the float32 states of full tuning do not fit, there is LLaVA alone, against the ordinary
    loop. Raises AssertionError when a recorded prefix changes a loss.
    """
    found: list[Row] = []
    vlm, batches = _built(size, name)
    full, bands = _strategies(vlm, size)
    for band in bands:
        _check_losses(vlm, band, batches[:2], size)
    tokens = batches[0].answers.shape[1]
    forward = forward_flops(vlm, inputs_of(vlm, batches[0]))
    for epochs in (1, 3):
        ways = _ways(full, bands, ordinary=epochs == 1 or full is None, lora=epochs == 3)
        runs = {way: partial(_train, vlm, *one, batches, size, epochs) for way, one in ways.items()}
        with (
            mock.patch("vlalign_utils.tuning.train_loop._save"),
            mock.patch("vlalign_utils.tuning.finetune.kept_for_backward", return_value=0),
        ):
            seconds = measure(runs, size.rounds)
        steps = epochs * size.batches
        flops = {
            way: of_training(strategy, forward, steps, size.batches, recorded, size.device == "cuda")
            for way, (strategy, recorded) in ways.items()
        }
        usual, *others = ways
        task = f"fine-tune {name}, {steps} steps of {tokens} tokens, epochs: {epochs}"
        timed = [
            ratio(task, way, usual, seconds) | {"share of FLOPs": round(flops[way] / flops[usual], 3)}
            for way in others
        ]
        show(timed)
        found += timed
    return found


def memory_rows(size: Size) -> list[dict[str, Any]]:
    """Peak MiB above the model's own weights in two epochs of two steps, and its share of full tuning's.

    The second share has the model's weights on both sides. What full tuning takes on a GPU is planned.
    """
    found: list[dict[str, Any]] = []
    for name in names(size):
        vlm, batches = _built(size, name)
        full, bands = _strategies(vlm, size)
        weights = bytes_needed(vlm.model)
        ways = _ways(full, bands, ordinary=True, lora=True)
        taken = {
            way: peak(size, partial(_train, vlm, *one, batches[:2], size, 2)) for way, one in ways.items()
        }
        if full is None:
            whole = strategies(vlm.n_layers, (0, 1))["full"]
            planned = plan(vlm, whole, 1, batches[0].answers.shape[1], answers=ANSWER, dtype=size.dtype)
            taken = {f"{FULL}, planned": planned.total - weights, **taken}
        usual = next(iter(taken.values()))
        for way, used in taken.items():
            row = {"way": f"fine-tune {name}: {way}", "peak MiB": round(used / MIB, 1)}
            if used is not usual:
                row |= {
                    "share": round(used / usual, 3),
                    "share, with weights": round((used + weights) / (usual + weights), 3),
                }
            found.append(row)
            print(f"peak memory: {', '.join(f'{key} {value}' for key, value in row.items())}", flush=True)
    return found


def names(size: Size) -> list[str]:
    """Architectures that are measured at a size."""
    return ["LLaVA"] if size.device == "cuda" else list(ARCHITECTURES)


def _built(size: Size, name: str) -> tuple[VLM, list[Batch]]:
    if size.device == "cpu":
        side = min(SIDE, size.tower["image_size"])
        size = replace(size, tower={**size.tower, "image_size": side})
    vlm, inputs = build(size, size.batches, ARCHITECTURES[name])
    parts = {
        key: value.chunk(size.batches) for key, value in inputs.items()
    }  # patches of rows lie one after another
    batches = []
    for i in range(size.batches):
        own = {key: value[i] for key, value in parts.items()}
        answers = own["input_ids"].clone()
        answers[:, :-ANSWER] = -1
        batches.append(Batch([i], own, answers))
    return vlm, batches


def _strategies(vlm: VLM, size: Size) -> tuple[Strategy | None, list[Strategy]]:
    """Full tuning, None where it does not fit, and bands.

    They are the third quarter, the depth of the paper, and as many layers as the first in the upper third.
    """
    n = vlm.n_layers
    spans = list(dict.fromkeys([(n // 2, 3 * n // 4), (n // 5, n // 2), (2 * n // 3, 11 * n // 12)]))
    named = [replace(strategies(n, span)["band"], name=f"band [{span[0]}, {span[1]})") for span in spans]
    return (None, named[:1]) if size.device == "cuda" else (strategies(n, spans[0])["full"], named)


def _ways(full: Strategy | None, bands: Sequence[Strategy], ordinary: bool, lora: bool) -> dict[str, Way]:
    ways: dict[str, Way] = {} if full is None else {FULL: (full, False)}
    for band in bands:
        if ordinary:
            ways[f"{band.name}, {ORDINARY}"] = band, False
        ways[f"{band.name}, {RECORDED}"] = band, True
    if lora:
        ways[f"{bands[0].name}, {RECORDED}, LoRA of rank {RANK}"] = bands[0].adapters(RANK), True
    return ways


def _train(
    vlm: VLM, strategy: Strategy, recorded: bool, batches: Sequence[Batch], size: Size, epochs: int
) -> list[tuple[int, float]]:
    budget = Budget(steps=epochs * len(batches), lr=1e-4, checkpointing=size.device == "cuda")
    with (
        tempfile.TemporaryDirectory() as folder,
        tune(vlm, strategy, batches, budget, Path(folder) if recorded else None) as training,
    ):
        return training.loss


def _check_losses(vlm: VLM, band: Strategy, batches: Sequence[Batch], size: Size) -> None:
    """Both loops must give the same losses, also where a prefix is read again."""
    ways = {way: _train(vlm, band, way == RECORDED, batches, size, 2) for way in (ORDINARY, RECORDED)}
    tolerance = 0.0 if size.device == "cpu" else 0.05  # kernels on a GPU add up in any order
    pairs = zip(ways[ORDINARY], ways[RECORDED], strict=True)
    if any(abs(b - a) > tolerance * abs(a) for (_, a), (_, b) in pairs):
        raise AssertionError(f"{type(vlm.model).__name__}, {band.name}: the losses differ: {ways}")
