"""Outcomes of a study of strategies: scores, intervals over items and seeds, seconds, FLOPs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from vlalign_utils.data.items import Item
from vlalign_utils.evidence import claims
from vlalign_utils.evidence.intervals import Interval, above_chance, rng
from vlalign_utils.tuning.costs import of_training
from vlalign_utils.tuning.flops import Forward
from vlalign_utils.tuning.strategies import Strategy
from vlalign_utils.tuning.study_records import Record
from vlalign_utils.tuning.time_model import Features, TimeFit, features, fit_time

CONFIDENCE = 0.95
SHUFFLES = 2000
PERFECT = 0.999  # a correlation beyond counts as this: Fisher's z has no end


class Trial(NamedTuple):
    """Loss per answer token and mean normalised score after a short run at one learning rate."""

    loss: float
    score: float


@dataclass(frozen=True)
class Study:
    """Results of a study: records by strategy, one per seed, and the evaluation items by suite.

    `aligned` is the record of the model that all start from, `tuned` that of the model's own tuned stage.
    `timing` is the record of the strategies taking turns: `taken` and `from_prefixes` hold seconds by name.
    `tried` holds what a short run gave by learning rate, for each strategy.
    """

    aligned: Record
    tuned: Record
    found: dict[str, list[Record]]
    evaluation: dict[str, list[Item]]
    timing: Record
    tried: dict[str, dict[float, Trial]] = field(default_factory=dict)

    def at_an_end(self) -> list[str]:
        """Strategies whose best rate is the lowest or the highest that was tried."""
        several = {name: by for name, by in self.tried.items() if len(by) > 1}
        return [name for name, by in several.items() if best_rate(by) in (min(by), max(by))]

    def scores(self, name: str, suites: Sequence[str]) -> Float[np.ndarray, "seeds items"]:
        """Normalised score of a strategy per seed and item of these suites: 0 is guessing, 1 is right.

        `name` may be "aligned" or "tuned", too, which are the model's own stages.
        """
        own = {"aligned": [self.aligned], "tuned": [self.tuned]}
        return normalised(own.get(name) or self.found[name], self.evaluation, suites)

    def times(self, name: str, how: str = "taken") -> Float[np.ndarray, "rounds 1"]:
        """Seconds of a strategy over those of full tuning's ordinary loop, round by round.

        `how` is "taken" for its own ordinary loop, or "from_prefixes", where recording counts.
        """
        return np.divide(self.timing[how][name], self.timing["taken"]["full"])[:, None]


def normalised(
    records: Sequence[Record], evaluation: Mapping[str, Sequence[Item]], suites: Sequence[str]
) -> Float[np.ndarray, "seeds items"]:
    """Normalised score of each record per item of these suites: 0 is guessing, 1 is right."""
    chance = np.array([item.chance for suite in suites for item in evaluation[suite]])
    chosen = [[c for suite in suites for c in record["correct"][suite]] for record in records]
    return np.stack([above_chance(np.array(one, dtype=float), chance) for one in chosen])


def best_rate(tried: Mapping[float, Trial]) -> float:
    """The rate of the highest score: of two alike that of the lower loss, then the lower rate.

    A score that is not a number is the worst.
    """

    def order(rate: float) -> tuple[float, float, float]:
        loss, score = tried[rate]
        return (math.inf if math.isnan(score) else -score, loss, rate)

    return min(tried, key=order)


def spread(values: Float[np.ndarray, "seeds items"], seed: int = 0) -> Interval:
    """Mean with its 95 % interval over items and seeds, as in `claims.interval`; a single number has none.

    Raises ValueError when there are no items.
    """
    if values.size == 1:
        return Interval(float(values.item()), float(values.item()), float(values.item()), 1)
    return claims.interval(values, seed, CONFIDENCE)


def ratio(
    above: Float[np.ndarray, "seeds items"], below: Float[np.ndarray, "seeds items"], seed: int = 0
) -> Interval | None:
    """Ratio of two means over the same items and seeds with its 95 % interval; see `claims.ratio`."""
    return claims.ratio(above, below, seed, CONFIDENCE)


def distinct(study: Study) -> list[str]:
    """Strategies that train something else than every one before: in a small model two may coincide."""
    seen: dict[Strategy, str] = {}
    for name, records in study.found.items():
        seen.setdefault(replace(strategy_of(records[0]), name=""), name)
    return list(seen.values())


def curve(records: Sequence[Record]) -> pd.Series:
    """Training loss by step: mean of the seeds that got there."""
    columns = [pd.Series(dict(map(tuple, record["loss"])), dtype=float) for record in records]
    return pd.concat(columns, axis=1).mean(axis=1).sort_index()


def last_losses(records: Sequence[Record]) -> Float[np.ndarray, "records 1"]:
    """Mean training loss of the last tenth of the steps; infinite for a run that ended before it had one."""
    ends = [record["loss"][-max(1, len(record["loss"]) // 10) :] for record in records]
    return np.array([[np.mean([loss for _, loss in end]) if end else np.inf] for end in ends])


def rank_correlation(
    x: Float[np.ndarray, "strategies seeds"], y: Float[np.ndarray, "strategies seeds"], seed: int = 0
) -> tuple[Interval, float]:
    """Spearman's rank correlation over the strategies: mean of the seeds with its 95 % interval, and chance.

    Mean and interval are those of Fisher's z, which keeps them within -1 and 1; N counts the seeds. Chance is
    the size that 95 % of the means stay below when the strategies of y are shuffled, all seeds alike. Where
    one side is the same for all strategies there is no order: it counts 0.
    """
    ranks = [rankdata(one, axis=0) for one in (x, y)]
    one, other = (r - r.mean(axis=0) for r in ranks)
    size = np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))

    def z(order: Any) -> Float[np.ndarray, " seeds"]:
        product = (one * other[order]).sum(axis=0)
        correlation = np.divide(product, size, out=np.zeros_like(product), where=size > 0)
        return np.arctanh(np.clip(correlation, -PERFECT, PERFECT))

    draw = rng(seed, "shuffled strategies")
    means = [abs(z(draw.permutation(len(x))).mean()) for _ in range(SHUFFLES)]
    mean, low, high, n = spread(z(slice(None))[:, None], seed)
    chance = float(np.tanh(np.quantile(means, 0.95)))
    return Interval(float(np.tanh(mean)), float(np.tanh(low)), float(np.tanh(high)), n), chance


def strategy_of(record: Record) -> Strategy:
    """The strategy that a record is about."""
    return Strategy(
        record["strategy"],
        tuple(record["layers"]),
        record["connector"],
        record["rank"],
        record["language"],
        record.get("part", ""),
    )


def flops(record: Record, forward: Forward) -> float:
    """Predicted FLOPs of the whole training by an ordinary loop, by `costs.of_training`."""
    return of_training(strategy_of(record), forward, record["steps"], record["steps"])


def step_features(record: Record, n_layers: int, epochs: int = 0) -> Features:
    """Features of a record's step for the time model.

    With `epochs`, of a step from recorded prefixes: recording them is spread over so many.
    """
    strategy = strategy_of(record)
    of = features(n_layers, strategy, record["parameters"], recorded=epochs > 0)
    if not epochs:
        return of
    return Features(of.tower + 1 / epochs, of.units + (strategy.start or 0) / epochs, of.weights)


def time_model(study: Study, n_layers: int) -> TimeFit:
    """The time model of `time_model`, fitted to the mean seconds of a step, ordinary and from prefixes.

    Raises ValueError as `fit_time` does.
    """
    steps, epochs = study.timing["steps"], study.timing["epochs"]
    measured = {}
    for how, spread_over, words in (("taken", 0, ""), ("from_prefixes", epochs, ", from prefixes")):
        for name, seconds in study.timing[how].items():
            of = step_features(study.found[name][0], n_layers, spread_over)
            measured[name + words] = (of, float(np.mean(seconds)) / steps)
    return fit_time(measured)
