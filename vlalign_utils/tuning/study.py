"""Study of strategies: each from the same start, with equal steps and data, for several seeds.

`make tune ARCH=llava` trains what is missing, from where it was killed; a chapter does the same.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from io import StringIO

import numpy as np
import torch
import typer

from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference import scoring
from vlalign_utils.inference.fingerprints import weights_identity
from vlalign_utils.interventions.weight_transplant import transplant_sweep
from vlalign_utils.tuning.answer_loss import Answers
from vlalign_utils.tuning.finetune import Budget
from vlalign_utils.tuning.outcomes import Study, best_rate
from vlalign_utils.tuning.protocol import (
    TRIAL_BATCHES,
    TRIAL_SEED,
    Protocol,
    training_batches,
    trial_batches,
    vision_suites,
)
from vlalign_utils.tuning.strategies import Strategy, singles, strategies, top
from vlalign_utils.tuning.study_records import Record, Records
from vlalign_utils.tuning.timing import timed, tuned_alone

BEYOND = 3  # rates tried beyond an end of those given, while the best one lies there
FACTOR = 3  # between them
LORA_RATE = 3.0  # LoRA's rates, as multiples of those of full weights
ADAPTED = ("band", "early", "late")


def compared(n_layers: int, protocol: Protocol, importance: Sequence[float], seed: int) -> list[Strategy]:
    """The strategies of one seed: the random layers are another draw for every seed."""
    first, stop = protocol.band
    known = strategies(n_layers, protocol.band, draws=protocol.seeds)
    drawn = known[f"random {seed + 1}"]
    plain = [s for name, s in known.items() if not name.startswith("random")]
    chosen = [*plain, replace(drawn, name="random"), top(np.asarray(importance), stop - first)]
    return [*chosen, *(known[name].adapters(protocol.rank) for name in ADAPTED)]


def study(vlm: VLM, tuned: VLM, protocol: Protocol, kept: Records, show: bool = False) -> Study:
    """Train, or find the records of, every strategy for every seed.

    Learning rates are chosen per strategy by the loss on other training questions, after a short run of
    another seed (see `losses`); random layers and single ones take that of `uniform` and `band`.
    `importance` of a layer is what the tuned model's answers lose in probability when the layer gets its
    weights from before tuning.
    """
    start = {"weights": weights_identity(vlm.model)}
    seeing, world = vision_suites(protocol.world), protocol.world
    evaluation = {name: load_suite(name, protocol.items, world=world) for name in seeing}
    evaluation["text"] = load_suite("text", 2 * protocol.items, world=world)
    asked = {"items": protocol.items, "suites": seeing}
    sizes = {"batch_size": protocol.batch_size, **asked}

    def say(record: Record) -> Record:
        if show:
            words = (record[name] for name in ("what", "strategy", "seed", "lr", "seconds") if name in record)
            typer.echo(" ".join(map(str, words)), err=True)
        return record

    def measured() -> Record:
        drawn = (load_suite(name, protocol.items, TRIAL_SEED, "train", world) for name in seeing)
        items = [item for suite in drawn for item in suite]
        sets = [(k,) for k in range(vlm.n_layers)]
        with redirect_stdout(StringIO()):  # a chapter prints the same whether this is on record or not
            moved = transplant_sweep(tuned, vlm, items, sets)
        return {"importance": (moved.receiver.prob[:, None] - moved.prob).mean(0).round(5).tolist()}

    about = {"what": "importance", **start, "tuned": weights_identity(tuned.model), **asked}
    importance = say(kept.get(about, measured))["importance"]

    def trials(strategy: Strategy) -> dict[float, float]:
        about = {"what": "rate", **start, **sizes, **_named(strategy), "steps": protocol.trial_steps}
        about |= {"asked": TRIAL_BATCHES, "seed": TRIAL_SEED}

        def loss(rate: float) -> float:
            made = partial(trial, vlm, strategy, protocol, rate)
            found: float = say(kept.get({**about, "lr": rate}, made))["loss"]
            return found

        return losses(loss, [rate * (LORA_RATE if strategy.rank else 1) for rate in protocol.rates])

    def run(strategy: Strategy, seed: int, lr: float) -> Record:
        about = {"what": "run", **start, **sizes, **_named(strategy), "seed": seed, "lr": lr}
        about |= {"steps": protocol.steps, "epochs": protocol.epochs}
        return say(kept.get(about, lambda: trained_once(vlm, strategy, protocol, seed, lr, evaluation)))

    aligned = say(
        kept.get({"what": "aligned", **start, **sizes}, lambda: {"correct": score(vlm, evaluation)})
    )
    first = compared(vlm.n_layers, protocol, importance, 0)
    tried = {s.name: trials(s) for s in first if s.name != "random"}
    rates = {name: best_rate(by) for name, by in tried.items()}
    rates["random"] = rates["uniform"]
    found: dict[str, list[Record]] = {name: [] for name in rates}
    for seed in range(protocol.seeds):
        for strategy in compared(vlm.n_layers, protocol, importance, seed):
            found[strategy.name].append(run(strategy, seed, rates[strategy.name]))
    alone = [run(s, 0, rates["band"]) for s in singles(vlm.n_layers) if protocol.singles]
    about = {
        "what": "timing",
        **start,
        "device": vlm.device.type,
        "batch_size": protocol.batch_size,
        "rounds": protocol.rounds,
    }
    about |= {"steps": protocol.epochs * protocol.timed_batches, "epochs": protocol.epochs}
    about |= {"layers": {s.name: list(s.layers) for s in first}, "rank": protocol.rank}
    timing = say(kept.get(about, lambda: timed(vlm, first, protocol)))
    return Study(aligned, found, alone, importance, evaluation, timing, tried)


def losses(loss: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    """Loss of every rate that was tried; a single one is taken as it is, untried: its loss is NaN.

    While the best lies at an end of those tried, one beyond it is tried, at most `BEYOND` of them.
    """
    if len(rates) == 1:
        return {rates[0]: math.nan}
    found = {rate: loss(rate) for rate in rates}
    for _ in range(BEYOND):
        best = best_rate(found)
        if min(found) < best < max(found):
            break
        rate = best / FACTOR if best == min(found) else best * FACTOR
        rate = float(f"{rate:.2g}")
        found[rate] = loss(rate)
    return found


def _named(strategy: Strategy) -> Record:
    fields = asdict(strategy)
    return {"strategy": fields.pop("name"), **fields, "layers": list(strategy.layers)}


def trial(vlm: VLM, strategy: Strategy, protocol: Protocol, lr: float) -> Record:
    """Loss on questions that were not trained on, after a short run; 1e9 after one that diverged."""
    batches, asked = trial_batches(vlm, protocol)
    with tuned_alone(vlm, strategy, batches, Budget(protocol.trial_steps, lr, TRIAL_SEED)) as training:
        if training.stopped:
            return {"loss": 1e9}
        task = Answers(vlm, None)
        with torch.no_grad():
            return {"loss": round(float(np.mean([task(0, batch, 1.0).item() for batch in asked])), 5)}


def trained_once(
    vlm: VLM,
    strategy: Strategy,
    protocol: Protocol,
    seed: int,
    lr: float,
    evaluation: Mapping[str, Sequence[Item]],
) -> Record:
    """Train and score. Seconds are of that day, whatever else ran then: `timed` compares them fairly."""
    data = training_batches(vlm, protocol, seed, protocol.batches)
    begin = time.monotonic()
    with tuned_alone(vlm, strategy, data, Budget(protocol.steps, lr, seed)) as training:
        seconds = time.monotonic() - begin
        return {
            "seconds": round(seconds, 2),
            "recorded": strategy.start is not None,
            "memory": training.memory,
            "parameters": training.parameters,
            "stopped": training.stopped,
            "loss": [[step, round(loss, 4)] for step, loss in training.loss],
            "correct": score(vlm, evaluation),
        }


def score(vlm: VLM, evaluation: Mapping[str, Sequence[Item]]) -> dict[str, list[int | float]]:
    """Score of each evaluation item, by suite."""
    every = scoring.evaluate(vlm, [item for items in evaluation.values() for item in items]).correct
    ends = np.cumsum([len(items) for items in evaluation.values()])
    parts = np.split(every, ends[:-1])
    return {name: [_short(c) for c in part] for name, part in zip(evaluation, parts, strict=True)}


def _short(value: float) -> int | float:
    return int(value) if value in (0, 1) else round(float(value), 4)
