"""Seconds of one training step: by counting layers, and with the overheads of one machine fitted.

The unit is one forward of one decoder layer. With gradient checkpointing a trained layer costs 4 (forward,
forward again, the gradient of its input, that of its weights), a frozen one that gradient passes through 3,
and one below the lowest trained weight 1, its forward. Without checkpointing they are 3, 2 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from vlalign_utils.tuning.strategies import Strategy


def units(n_layers: int, strategy: Strategy, checkpointing: bool = True, recorded: bool = False) -> float:
    """Cost of a step in the decoder layers, in forwards of one layer.

    A trained connector or embedding has gradient pass through all layers. LoRA's matrices are neglected, its
    layers count as frozen. With `recorded`, layers below the lowest trained one do not run.
    Raises ValueError for a layer that is not there, or an input that cannot be recorded.
    """
    strategy.check_layers(n_layers)
    if recorded:
        strategy.check_recordable()
    below = strategy.start or 0
    own = n_layers if strategy.language else 0 if strategy.rank else len(strategy.layers)
    return float((0 if recorded else below) + (3 if checkpointing else 2) * (n_layers - below) + own)


@dataclass(frozen=True)
class Features:
    """Features that a step's seconds are fitted by: forwards of the tower, layer units, trained weights."""

    tower: float
    units: float
    weights: int = 0


def features(
    n_layers: int, strategy: Strategy, weights: int = 0, checkpointing: bool = False, recorded: bool = False
) -> Features:
    """Features of a strategy that trains so many weights. Raises as `units` does."""
    return Features(0.0 if recorded else 1.0, units(n_layers, strategy, checkpointing, recorded), weights)


@dataclass(frozen=True)
class Shares:
    """Shares of full tuning's seconds spent on layers, on trained weights, and whatever is trained."""

    layers: float = 1.0
    weights: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class TimeFit:
    """Seconds = tower * forwards + unit * units + weight * weights + constant, fitted on one machine.

    `fitted` seconds and relative `errors` (fitted / measured - 1) are on the data that were fitted;
    `left_out` is the relative error of each strategy predicted by a fit to all others: judge by these.
    Where all strategies run the tower, it cannot be told from the constant: only their sum means something.
    So measure at least two with a recorded input: the only one, left out, is predicted by a guess.
    """

    tower: float
    unit: float
    weight: float
    constant: float
    fitted: Mapping[str, float]
    errors: Mapping[str, float]
    left_out: Mapping[str, float]

    def predict(self, of: Features) -> float:
        """Seconds of a step."""
        return self.tower * of.tower + self.unit * of.units + self.weight * of.weights + self.constant

    def shares(self, full: Features) -> Shares:
        """Shares of a step of full tuning, by its features."""
        seconds = self.predict(full)
        layers, weights = self.unit * full.units / seconds, self.weight * full.weights / seconds
        return Shares(layers, weights, 1 - layers - weights)


def fit_time(measured: Mapping[str, tuple[Features, float]]) -> TimeFit:
    """Fit seconds per step of strategies on one machine, in non-negative least squares of relative errors.

    Raises ValueError for seconds that are not positive, or when there are not more strategies than their
    features need coefficients: nothing would be left to judge the fit by.
    """
    wrong = [name for name, (_, seconds) in measured.items() if not seconds > 0]
    if wrong:
        raise ValueError(f"{wrong[0]!r} took {measured[wrong[0]][1]} seconds a step, expected more than 0")
    rows = np.array([[f.tower, f.units, f.weights, 1.0] for f, _ in measured.values()]).reshape(-1, 4)
    seconds = np.array([s for _, s in measured.values()])
    scale = np.abs(rows).max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0  # what no strategy has gets a coefficient of 0
    needed = int(np.linalg.matrix_rank(rows / scale)) if measured else 1
    if len(measured) <= needed:
        raise ValueError(
            f"{len(measured)} strategies were measured, and {needed} coefficients are to be fitted: "
            f"measure at least {needed + 1} different strategies"
        )

    def solve(kept: np.ndarray) -> np.ndarray:
        relative = rows[kept] / scale / seconds[kept, None]
        return nnls(relative, np.ones(len(relative)))[0] / scale

    every = np.arange(len(rows))
    best = solve(every)
    left_out = np.array([rows[i] @ solve(every[every != i]) for i in every])
    fitted = rows @ best

    def by_name(values: np.ndarray) -> dict[str, float]:
        return dict(zip(measured, values.tolist(), strict=True))

    errors, left = by_name(fitted / seconds - 1), by_name(left_out / seconds - 1)
    tower, unit, weight, constant = best.tolist()
    return TimeFit(tower, unit, weight, constant, by_name(fitted), errors, left)


@dataclass(frozen=True)
class Headline:
    """A result of the paper: `score` and `time` of a strategy, as shares of full tuning's."""

    n_layers: int
    strategy: Strategy
    score: float
    time: float


# arXiv 2606.03871. Ranges include both ends: with them the units alone give 107/128 = 83.6 % and 110/144 =
# 76.4 %; without the upper end 106/128 = 82.8 % and 109/144 = 75.7 %. The first trains its projector too.
PAPER = {
    "LLaVA-7B": Headline(32, Strategy("layers 6-16", tuple(range(6, 17)), connector=True), 0.988, 0.861),
    "OneVision-4B": Headline(36, Strategy("layers 8-25", tuple(range(8, 26))), 1.004, 0.757),
}


def paper_cases(shares: Shares | None = None) -> dict[str, float]:
    """Time of the paper's two headlines as a share of full tuning's, by the model, with checkpointing.

    By units alone, or with the `shares` of a machine's fit: time = fixed + layers * units / units of full +
    weights * layers trained / all layers. That takes the paper's runs to have this machine's overheads,
    which a smaller model on other hardware does not show: an illustration, no prediction.
    """
    shares, cases = shares or Shares(), {}
    for name, case in PAPER.items():
        full = Strategy("full", tuple(range(case.n_layers)), connector=True)
        ratio = units(case.n_layers, case.strategy) / units(case.n_layers, full)
        trained = len(case.strategy.layers) / case.n_layers
        cases[name] = shares.fixed + shares.layers * ratio + shares.weights * trained
    return cases
