"""Every strategy from the same start, with equal steps and data, for several seeds; kept as records.

`make tune ARCH=llava` trains what is missing, from where it was killed; a chapter does the same.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference import scoring
from vlalign_utils.inference.fingerprints import weights_identity
from vlalign_utils.inference.scoring import Batch, Item
from vlalign_utils.interventions.weight_transplant import transplant_sweep
from vlalign_utils.tuning.finetune import Answers, Budget, Training, tune
from vlalign_utils.tuning.machine import machine
from vlalign_utils.tuning.outcomes import Study, best_rate
from vlalign_utils.tuning.strategies import Strategy, singles, strategies, top
from vlalign_utils.tuning.study_records import Record, Records

TRIAL_BATCHES = 10  # that a short run is judged by
TRIAL_SEED = 1000  # of the data that learning rates are chosen on: no seed of the study
BEYOND = 3  # rates tried beyond an end of those given, while the best one lies there
FACTOR = 3  # between them
LORA_RATE = 3.0  # LoRA's rates, as multiples of those of full weights
ADAPTED = ("band", "early", "late")
TIMED_BATCHES = 6  # of each of the fine-tunes that are timed


@dataclass(frozen=True)
class Protocol:
    """Sizes of a study: `rates` are tried for `trial_steps` each; `items` are held-out, for each suite.

    In each of `rounds` all strategies take turns at being timed.
    """

    band: tuple[int, int]
    steps: int
    epochs: int
    batch_size: int
    seeds: int
    rates: tuple[float, ...]
    trial_steps: int
    items: int
    rank: int
    singles: bool
    rounds: int

    @property
    def batches(self) -> int:
        """Batches of training data, each seen once an epoch."""
        return -(-self.steps // self.epochs)

    @property
    def timed_batches(self) -> int:
        """Batches of each fine-tune that is timed."""
        return min(TIMED_BATCHES, self.batches)


def seeing() -> list[str]:
    """Suites about what a picture shows."""
    return [name for name, suite in scoring.SUITES.items() if suite.vision_centric]


@lru_cache(maxsize=1)  # strategy after strategy is given the same, and drawing pictures takes its time
def lessons(vlm: VLM, protocol: Protocol, seed: int, n_batches: int) -> Sequence[Batch]:
    """Training questions of all vision-centric suites, as many of each, drawn with the seed."""
    return tuple(scoring.batches(vlm, _questions(protocol, seed, n_batches), protocol.batch_size))


@lru_cache(maxsize=1)
def trial_lessons(vlm: VLM, protocol: Protocol) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """What a short run is taught, and what it is asked: other questions of the same suites."""
    # Parted before they are put in batches of like length, or the longest suites alone would be asked.
    every = _questions(protocol, TRIAL_SEED, protocol.trial_steps + TRIAL_BATCHES)
    taught = protocol.trial_steps * protocol.batch_size
    parts = every[:taught], every[taught:]
    one, other = (tuple(scoring.batches(vlm, part, protocol.batch_size)) for part in parts)
    return one, other


def _questions(protocol: Protocol, seed: int, n_batches: int) -> list[Item]:
    share = -(-n_batches * protocol.batch_size // len(seeing()))
    items = [item for name in seeing() for item in scoring.load(name, share, seed, split="train")]
    order = rng(seed, "lessons").permutation(len(items))[: n_batches * protocol.batch_size]
    return [items[i] for i in order]


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
    exam = {name: scoring.load(name, protocol.items) for name in seeing()}
    exam["text"] = scoring.load("text", 2 * protocol.items)
    asked = {"items": protocol.items, "suites": seeing()}
    sizes = {"batch_size": protocol.batch_size, **asked}

    def say(record: Record) -> Record:
        if show:
            words = (record[name] for name in ("what", "strategy", "seed", "lr", "seconds") if name in record)
            typer.echo(" ".join(map(str, words)), err=True)
        return record

    def measured() -> Record:
        items = [
            item for name in seeing() for item in scoring.load(name, protocol.items, TRIAL_SEED, "train")
        ]
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
        return say(kept.get(about, lambda: trained_once(vlm, strategy, protocol, seed, lr, exam)))

    aligned = say(kept.get({"what": "aligned", **start, **sizes}, lambda: {"correct": score(vlm, exam)}))
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
    return Study(aligned, found, alone, importance, exam, timing, tried)


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
    taught, asked = trial_lessons(vlm, protocol)
    with _tuned(vlm, strategy, taught, Budget(protocol.trial_steps, lr, TRIAL_SEED)) as training:
        if training.stopped:
            return {"loss": 1e9}
        task = Answers(vlm, None)
        with torch.no_grad():
            return {"loss": round(float(np.mean([task(0, batch, 1.0).item() for batch in asked])), 5)}


def trained_once(
    vlm: VLM, strategy: Strategy, protocol: Protocol, seed: int, lr: float, exam: Mapping[str, Sequence[Item]]
) -> Record:
    """Train and score. Seconds are of that day, whatever else ran then: `timed` compares them fairly."""
    data = lessons(vlm, protocol, seed, protocol.batches)
    begin = time.monotonic()
    with _tuned(vlm, strategy, data, Budget(protocol.steps, lr, seed)) as training:
        seconds = time.monotonic() - begin
        return {
            "seconds": round(seconds, 2),
            "recorded": strategy.start is not None,
            "memory": training.memory,
            "parameters": training.parameters,
            "stopped": training.stopped,
            "loss": [[step, round(loss, 4)] for step, loss in training.loss],
            "correct": score(vlm, exam),
        }


def timed(vlm: VLM, chosen: Sequence[Strategy], protocol: Protocol) -> Record:
    """Seconds of a short fine-tune by each strategy in each round, recording the prefix included.

    The strategies take turns: what else the machine does falls on all of them.
    """
    data = lessons(vlm, protocol, TRIAL_SEED, protocol.timed_batches)
    budget = Budget(protocol.epochs * len(data), protocol.rates[0])
    taken: dict[str, list[float]] = {strategy.name: [] for strategy in chosen}
    for _ in range(protocol.rounds):
        for strategy in chosen:
            begin = time.monotonic()
            with _tuned(vlm, strategy, data, budget):
                taken[strategy.name].append(round(time.monotonic() - begin, 3))
    return {"taken": taken, "machine": machine(vlm.device.type)}


@contextmanager
def _tuned(vlm: VLM, strategy: Strategy, data: Sequence[Batch], budget: Budget) -> Iterator[Training]:
    """By recorded prefixes where possible, each time recorded anew: every strategy pays for its own."""
    with tempfile.TemporaryDirectory() as folder:
        record_to = None if strategy.start is None else Path(folder)
        with tune(vlm, strategy, data, budget, record_to) as training:
            yield training


def score(vlm: VLM, exam: Mapping[str, Sequence[Item]]) -> dict[str, list[int | float]]:
    """What each item scored, by suite."""
    every = scoring.evaluate(vlm, [item for items in exam.values() for item in items]).correct
    ends = np.cumsum([len(items) for items in exam.values()])
    parts = np.split(every, ends[:-1])
    return {name: [_short(c) for c in part] for name, part in zip(exam, parts, strict=True)}


def side_by_side(vlm: VLM, protocol: Protocol, rounds: int) -> dict[str, float]:
    """Median seconds of an epoch of a few batches: full tuning, and the band, ordinary and recorded.

    They take turns. Everything counts, from the call of `tune` to its body; a later epoch from a recorded
    prefix is what a fine-tune of two epochs takes more than one of a single epoch.
    """
    data = lessons(vlm, protocol, TRIAL_SEED, protocol.timed_batches)
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


def _short(value: float) -> int | float:
    return int(value) if value in (0, 1) else round(float(value), 4)


def protocol_of(params: Mapping[str, Any]) -> Protocol:
    """The protocol in a notebook's parameters."""
    sizes = {
        name: params[name]
        for name in ("steps", "epochs", "batch_size", "seeds", "trial_steps", "items", "rounds")
    }
    first, stop = params["band"]
    return Protocol(
        (first, stop), **sizes, rates=tuple(params["rates"]), rank=params["rank"], singles=params["singles"]
    )
