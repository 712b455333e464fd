"""Study of strategies: each from the same start, with equal steps and questions, for several seeds.

`make tune ARCH=llava` trains what is missing, from where it was killed; a chapter does the same.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import typer

from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import above_chance
from vlalign_utils.inference import scoring
from vlalign_utils.inference.fingerprints import weights_identity
from vlalign_utils.tuning.answer_loss import Answers
from vlalign_utils.tuning.finetune import Budget, tune
from vlalign_utils.tuning.outcomes import Study, Trial, best_rate
from vlalign_utils.tuning.protocol import (
    EPOCHS,
    FEWER,
    TRIAL_ITEMS,
    TRIAL_SEED,
    Protocol,
    training_batches,
    trial_data,
)
from vlalign_utils.tuning.strategies import Strategy, described, strategies
from vlalign_utils.tuning.study_records import Record, Records
from vlalign_utils.tuning.timing import timed

BEYOND = 3  # rates tried beyond an end of those given, while the best one lies there
FACTOR = 3  # between them
LORA_RATE = 3.0  # LoRA's rates, as multiples of those of full weights
ADAPTED = ("band", "early", "late")
JUDGED = ("full", *ADAPTED, "connector")  # strategies that claims compare, for all seeds
DIVERGED = Trial(loss=1e9, score=-1e9)


def compared(n_layers: int, protocol: Protocol) -> list[Strategy]:
    """The strategies of a study, those that claims compare first.

    LoRA in every layer has as many parameters as LoRA in the band, as far as whole ranks allow.
    """
    known = strategies(n_layers, protocol.band)
    first, stop = protocol.band
    spread = max(1, round(protocol.rank * (stop - first) / n_layers))
    everywhere = Strategy("everywhere", tuple(range(n_layers))).adapters(spread)
    plain = [known.pop(name) for name in JUDGED]
    lora = [s.adapters(protocol.rank) for s in plain if s.name in ADAPTED]
    return [*plain, *known.values(), *lora, everywhere]


def seeds_of(strategy: Strategy, protocol: Protocol) -> range:
    """Seeds that a strategy is trained with: `FEWER` for what no claim is about."""
    whole = strategy.name in JUDGED or strategy.name.removesuffix(", LoRA") in ADAPTED
    return range(protocol.seeds if whole else min(FEWER, protocol.seeds))


@dataclass
class Trainer:
    """What a study trains: runs and trials of learning rates, each of them found again on record.

    Args:
        vlm: the model that every strategy starts from.
        protocol: sizes of the study.
        kept: records of what was trained before; new ones are added.
        show: print one line for every new record.
    """

    vlm: VLM
    protocol: Protocol
    kept: Records
    show: bool = False
    start: Record = field(init=False)
    evaluation: dict[str, list[Item]] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the held-out questions, and take the identity of the weights."""
        p = self.protocol
        self.start = {"weights": weights_identity(self.vlm.model), "batch_size": p.batch_size}
        self.start |= {"suites": list(p.suites), "precision": p.precision}
        self.evaluation = {name: load_suite(name, p.items, world=p.world) for name in p.suites}
        self.evaluation["text"] = load_suite("text", 2 * p.items, world=p.world)

    def rate(self, strategy: Strategy) -> float:
        """The learning rate of a strategy: that of the best score after a short run of another seed."""
        return best_rate(self.trials(strategy))

    def trials(self, strategy: Strategy) -> dict[float, Trial]:
        """What every rate gave that was tried for a strategy."""
        about = {"what": "rate", **self.start, **_named(strategy), "steps": self.protocol.trial_steps}
        about |= {"asked": TRIAL_ITEMS, "seed": TRIAL_SEED}

        def tried(rate: float) -> Trial:
            made = partial(trial, self.vlm, strategy, self.protocol, rate)
            found = self.said({**about, "lr": rate}, lambda: made()._asdict())
            return Trial(found["loss"], found["score"])

        times = LORA_RATE if strategy.rank else 1
        return trials(tried, [float(f"{rate * times:.2g}") for rate in self.protocol.rates])

    def run(self, strategy: Strategy, seed: int) -> Record:
        """The record of one fine-tune, at the strategy's rate."""
        lr = self.rate(strategy)
        about = {"what": "run", **self.start, **_named(strategy), "seed": seed, "lr": lr}
        about |= {"steps": self.protocol.steps, "items": self.protocol.items}
        made = partial(trained_once, self.vlm, strategy, self.protocol, seed, lr, self.evaluation)
        return self.said(about, made)

    def untrained(self, name: str, vlm: VLM) -> Record:
        """The record of a model as it is, such as the one that all start from."""
        about: Record = {"what": name, "weights": weights_identity(vlm.model)}
        about |= {"suites": list(self.protocol.suites), "items": self.protocol.items}
        return self.said(about, lambda: {"correct": score(vlm, self.evaluation)})

    def said(self, about: Record, make: Callable[[], Record]) -> Record:
        """A record, found or made; one line on stderr of what is made, where that is wanted."""

        def made() -> Record:
            record = make()
            if self.show:
                names = ("what", "strategy", "seed", "lr", "score", "seconds")
                shown = about | record
                typer.echo(" ".join(str(shown[name]) for name in names if name in shown), err=True)
            return record

        return self.kept.get(about, made)


def study(vlm: VLM, tuned: VLM, protocol: Protocol, kept: Records, show: bool = False) -> Study:
    """Train, or find the records of, every strategy for every seed.

    Learning rates are chosen per strategy by the score on other training questions, after a short run of
    another seed (see `trials`). `tuned` is the model's own tuned stage: what this much training is held
    against. Both `vlm` and `tuned` are scored on the same held-out questions.
    """
    trainer = Trainer(vlm, protocol, kept, show)
    chosen = compared(vlm.n_layers, protocol)
    before, after = trainer.untrained("aligned", vlm), trainer.untrained("tuned", tuned)
    tried = {strategy.name: trainer.trials(strategy) for strategy in chosen}
    found: dict[str, list[Record]] = {strategy.name: [] for strategy in chosen}
    for seed in range(protocol.seeds):
        for strategy in chosen:
            if seed in seeds_of(strategy, protocol):
                found[strategy.name].append(trainer.run(strategy, seed))
    about = {"what": "timing", **trainer.start, "device": vlm.device.type, "rounds": protocol.rounds}
    about |= {"steps": EPOCHS * protocol.timed_batches, "epochs": EPOCHS, "rank": protocol.rank}
    about |= {"layers": {s.name: list(s.layers) for s in chosen}}
    timing = trainer.said(about, lambda: timed(vlm, chosen, protocol))
    return Study(before, after, found, trainer.evaluation, timing, tried)


def trials(tried: Callable[[float], Trial], rates: Sequence[float]) -> dict[float, Trial]:
    """What every rate gave that was tried; a single one is taken as it is, untried.

    While the best lies at an end of those tried, one beyond it is tried, at most `BEYOND` of them.
    """
    if len(rates) == 1:
        return {rates[0]: Trial(math.nan, math.nan)}
    found = {rate: tried(rate) for rate in rates}
    for _ in range(BEYOND):
        best = best_rate(found)
        if min(found) < best < max(found):
            break
        rate = best / FACTOR if best == min(found) else best * FACTOR
        rate = float(f"{rate:.2g}")
        found[rate] = tried(rate)
    return found


def _named(strategy: Strategy) -> Record:
    fields = described(strategy)
    return {"strategy": fields.pop("name"), **fields, "layers": list(strategy.layers)}


def trial(vlm: VLM, strategy: Strategy, protocol: Protocol, lr: float) -> Trial:
    """Loss and normalised score on questions that were not trained on, after a short run."""
    batches, asked = trial_data(vlm, protocol)
    budget = Budget(protocol.trial_steps, lr, TRIAL_SEED, precision=protocol.precision)
    with tune(vlm, strategy, batches, budget) as training:
        if training.stopped:
            return DIVERGED
        task = Answers(vlm, None)
        with torch.no_grad():
            losses = [task(0, b, 1.0).item() for b in scoring.batches(vlm, asked, protocol.batch_size)]
        chance = np.array([item.chance for item in asked])
        gained = above_chance(scoring.evaluate(vlm, asked).correct, chance).mean()
        return Trial(round(float(np.mean(losses)), 5), round(float(gained), 5))


def trained_once(
    vlm: VLM,
    strategy: Strategy,
    protocol: Protocol,
    seed: int,
    lr: float,
    evaluation: Mapping[str, Sequence[Item]],
) -> Record:
    """Train and score. Seconds are of that day, whatever else ran then: `timed` compares them fairly."""
    data = training_batches(vlm, protocol, seed, protocol.steps)
    begin = time.monotonic()
    with tune(
        vlm, strategy, data, Budget(protocol.steps, lr, seed, precision=protocol.precision)
    ) as training:
        seconds = time.monotonic() - begin
        return {
            "seconds": round(seconds, 2),
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
