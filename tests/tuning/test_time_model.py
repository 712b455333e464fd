import numpy as np
import pytest

from vlalign_utils.tuning.strategies import Strategy, strategies
from vlalign_utils.tuning.time_model import (
    PAPER,
    Features,
    Shares,
    features,
    fit_time,
    paper_cases,
    units,
)

N = 12
CHOSEN = strategies(N, (4, 8))
LAYER, CONNECTOR = 1000, 300  # weights
TOWER, UNIT, CONSTANT, WEIGHT = 0.02, 0.003, 0.05, 1e-6


def naive(n_layers: int, strategy: Strategy, checkpointing: bool, recorded: bool) -> int:
    lowest = 0 if strategy.connector or strategy.language else min(strategy.layers)
    cost = 0
    for k in range(n_layers):
        if k < lowest:
            cost += 0 if recorded else 1
            continue
        cost += 1 + 1 + (1 if checkpointing else 0)  # forward, the gradient that passes, forward again
        if strategy.language or (k in strategy.layers and not strategy.rank):
            cost += 1
    return cost


def measured(strategy: Strategy, recorded: bool = False) -> tuple[Features, float]:
    weights = LAYER * len(strategy.layers) + CONNECTOR * strategy.connector
    one = features(N, strategy, weights, recorded=recorded)
    cost = naive(N, strategy, False, recorded)
    return one, TOWER * (not recorded) + UNIT * cost + WEIGHT * weights + CONSTANT


@pytest.fixture
def planted() -> dict[str, tuple[Features, float]]:
    recorded = {f"{name}, recorded": measured(CHOSEN[name], True) for name in ("band", "late", "uniform")}
    return {name: measured(strategy) for name, strategy in CHOSEN.items()} | recorded


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", CHOSEN)
def test_units_are_those_of_a_loop(name: str, checkpointing: bool) -> None:
    strategy = CHOSEN[name]
    assert units(N, strategy, checkpointing) == naive(N, strategy, checkpointing, False)
    if strategy.start is not None:
        assert units(N, strategy, checkpointing, recorded=True) == naive(N, strategy, checkpointing, True)
    if strategy.start is not None:
        lora = strategy.adapters(4)
        assert units(N, lora, checkpointing) == naive(N, lora, checkpointing, False)


def test_units_of_a_whole_language_model_without_a_connector() -> None:
    assert units(5, Strategy("language", language=True)) == 20
    assert units(5, Strategy("connector", connector=True)) == 15


def test_impossible_units_are_refused() -> None:
    with pytest.raises(ValueError, match="trains layer 7, the model has 7 layers"):
        units(7, Strategy("high", (7,)))
    with pytest.raises(ValueError, match="no input can be recorded"):
        units(7, Strategy("connector", connector=True), recorded=True)


def test_the_headlines_by_units_alone() -> None:
    assert paper_cases() == pytest.approx({"LLaVA-7B": 0.836, "OneVision-4B": 0.764}, abs=0.0005)
    for case in PAPER.values():
        full = Strategy("full", tuple(range(case.n_layers)), connector=True)
        loops = (naive(case.n_layers, strategy, True, False) for strategy in (case.strategy, full))
        by_hand, whole = loops
        assert units(case.n_layers, case.strategy) / units(case.n_layers, full) == by_hand / whole


def test_the_headlines_without_the_upper_end_are_others() -> None:
    shorter = [Strategy("", tuple(range(6, 16)), connector=True), Strategy("", tuple(range(8, 25)))]
    ratios = [units(n, s) / (4 * n) for n, s in zip((32, 36), shorter, strict=True)]
    assert ratios == pytest.approx([0.828, 0.757], abs=0.0005)


def test_overheads_move_the_headlines_by_their_shares() -> None:
    half = paper_cases(Shares(layers=0.5, weights=0.1, fixed=0.4))
    assert half["LLaVA-7B"] == pytest.approx(0.4 + 0.5 * 107 / 128 + 0.1 * 11 / 32)
    assert half["OneVision-4B"] == pytest.approx(0.4 + 0.5 * 110 / 144 + 0.1 * 18 / 36)
    assert paper_cases(Shares(0, 0, 1)) == {"LLaVA-7B": 1, "OneVision-4B": 1}


def test_planted_coefficients_come_back(planted: dict[str, tuple[Features, float]]) -> None:
    fit = fit_time(planted)
    found = (fit.tower, fit.unit, fit.constant, fit.weight)
    assert found == pytest.approx((TOWER, UNIT, CONSTANT, WEIGHT), rel=1e-6)
    for name, (one, seconds) in planted.items():
        assert fit.fitted[name] == pytest.approx(seconds)
        assert fit.predict(one) == pytest.approx(seconds)
        assert (fit.errors[name], fit.left_out[name]) == pytest.approx((0, 0), abs=1e-6)
    full, seconds = planted["full"]
    shares = fit.shares(full)
    assert shares.layers == pytest.approx(UNIT * full.units / seconds)
    assert shares.fixed == pytest.approx((TOWER + CONSTANT) / seconds)
    assert shares.layers + shares.weights + shares.fixed == pytest.approx(1)


def test_each_left_out_error_is_that_of_a_fit_to_the_others(
    planted: dict[str, tuple[Features, float]],
) -> None:
    noise = np.random.default_rng(0).normal(1, 0.03, len(planted))
    noisy = {name: (one, s * e) for (name, (one, s)), e in zip(planted.items(), noise.tolist(), strict=True)}
    fit = fit_time(noisy)
    for name, (one, seconds) in noisy.items():
        others = fit_time({other: noisy[other] for other in noisy if other != name})
        assert fit.left_out[name] == pytest.approx(others.predict(one) / seconds - 1)
        assert fit.errors[name] == pytest.approx(fit.predict(one) / seconds - 1)
    squares = [sum(e**2 for e in errors.values()) for errors in (fit.errors, fit.left_out)]
    assert squares[0] < squares[1]


def test_an_outlier_shows_when_it_is_left_out(planted: dict[str, tuple[Features, float]]) -> None:
    one, seconds = planted["late"]
    planted["late"] = (one, 2 * seconds)
    fit = fit_time(planted)
    assert max(fit.left_out, key=lambda name: abs(fit.left_out[name])) == "late"
    assert abs(fit.left_out["late"]) > abs(fit.errors["late"])


def test_coefficients_are_never_negative() -> None:
    falling = {str(n): (Features(1, n), 10.0 - n) for n in range(1, 6)}
    fit = fit_time(falling)
    assert (fit.unit, fit.weight) == (0, 0)
    assert fit.predict(Features(1, 3)) > 0


def test_measurements_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(ValueError, match="2 strategies were measured, and 2 coefficients are to be fitted"):
        fit_time({"a": (Features(1, 4), 1.0), "b": (Features(1, 5), 2.0)})
    with pytest.raises(ValueError, match="0 strategies"):
        fit_time({})
    with pytest.raises(ValueError, match="'b' took 0 seconds"):
        fit_time({"a": (Features(1, 4), 1.0), "b": (Features(1, 5), 0)})
