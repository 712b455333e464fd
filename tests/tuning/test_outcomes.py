import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vlalign_utils.data.items import Item
from vlalign_utils.evidence import claims
from vlalign_utils.evidence.crossed import crossed_mean
from vlalign_utils.tuning import outcomes
from vlalign_utils.tuning.flops import Forward, Part
from vlalign_utils.tuning.outcomes import Study, spread
from vlalign_utils.tuning.time_model import Features


def part(flops):
    return Part(flops, 0, 0, 0)


RUN = {
    "strategy": "band",
    "layers": [1, 2],
    "connector": False,
    "rank": 0,
    "language": False,
    "steps": 6,
    "epochs": 3,
    "recorded": True,
    "parameters": 10,
    "seconds": 12.0,
}
FULL = RUN | {
    "strategy": "full",
    "layers": [0, 1, 2, 3],
    "connector": True,
    "language": True,
    "recorded": False,
}
FORWARD = Forward(part(100), part(10), (part(20),) * 4, part(5))


def item(choices):
    return Item(None, "?", choices[0], choices, "g", "")


def test_scores_are_above_chance_by_suite():
    evaluation = {"two": [item(("a", "b")), item(("a", "b"))], "four": [item(("a", "b", "c", "d"))]}
    run = {"correct": {"two": [1, 0], "four": [0]}}
    found = Study(run, {"band": [run, {"correct": {"two": [1, 1], "four": [1]}}]}, [], [], evaluation, {})
    assert found.scores("aligned", ["two"]).tolist() == [[1, -1]]
    assert found.scores("band", ["four", "two"]).tolist() == [
        [pytest.approx(-1 / 3), 1, -1],
        [1, 1, 1],
    ]


def test_one_seed_has_the_interval_of_its_items():
    values = np.random.default_rng(0).normal(size=(1, 50))
    found, (low, high) = (
        spread(values),
        scipy_stats.t.interval(0.95, 49, values.mean(), scipy_stats.sem(values[0])),
    )
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx(
        (low, high), abs=0.01
    )  # expanded percentiles aim at these


def test_numbers_of_seeds_have_students_interval():
    values = np.array([[1.0], [2.0], [4.0]])
    found = spread(values)
    low, high = scipy_stats.t.interval(0.95, 2, values.mean(), scipy_stats.sem(values[:, 0]))
    assert found == pytest.approx((values.mean(), low, high, 3))


def test_seeds_and_items_are_crossed_factors():
    values = np.random.default_rng(1).normal(size=(3, 40))
    both, items = spread(values), claims.interval(values.mean(0), 0, 0.95)
    assert both == crossed_mean(values, 0.95, (-np.inf, np.inf))
    assert both.n == 40
    assert both.high - both.low > items.high - items.low


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="have no interval"):
        spread(np.zeros((1, 0)))


def test_flops_of_a_training_hold_the_recording_once():
    # Recorded: six steps of layers 1 to 3 and the head, and two batches through all that lies below.
    step = (20 + 20 + 20) + 20 + (20 + 20) + (20 + 20) + 5 + 5  # forward, through 3, of weights; head
    found = outcomes.flops(RUN, FORWARD)
    below = 2 * (100 + 10 + 20)
    assert found - below == pytest.approx(outcomes.flops(RUN | {"epochs": 6}, FORWARD) - below / 2)
    assert found < outcomes.flops(RUN | {"recorded": False}, FORWARD) < outcomes.flops(FULL, FORWARD)
    assert found - below == pytest.approx(6 * step, rel=0.2)


def test_a_recorded_step_has_its_share_of_the_recording():
    # Layers 1 and 2 trained: three forwards each; layer 3 two; layer 0 and the tower once in three epochs.
    found = outcomes.step_features(RUN, 4)
    assert (found.tower, found.units, found.weights) == (pytest.approx(1 / 3), pytest.approx(8 + 1 / 3), 10)
    assert outcomes.step_features(FULL, 4) == Features(1, 12, 10)


def test_time_is_a_share_of_full_tunings_round_by_round():
    timing = {"taken": {"full": [2.0, 4.0], "band": [1.0, 3.0]}}
    times = Study({}, {}, [], [], {}, timing).times("band")
    assert times.tolist() == [[0.5], [0.75]]


def test_the_time_model_is_fitted_to_what_a_step_took():
    chosen = {"late": [6, 7], "band": [2, 3], "early": [0, 1], "most": [1, 2, 3, 4, 5], "spread": [1, 4, 6]}
    runs = {name: [RUN | {"strategy": name, "layers": layers}] for name, layers in chosen.items()}
    runs["ordinary"] = [RUN | {"strategy": "ordinary", "layers": [2, 3], "recorded": False}]
    of = {name: outcomes.step_features(run, 8) for name, (run,) in runs.items()}
    taken = {name: [4 * (0.5 * f.tower + 0.1 * f.units + 0.2)] * 3 for name, f in of.items()}
    fit = outcomes.time_model(Study({}, runs, [], [], {}, {"steps": 4, "taken": taken}), 8)
    assert max(abs(error) for error in fit.errors.values()) < 1e-6
    assert set(fit.errors) == {*chosen, "ordinary"}
    assert (fit.tower, fit.unit) == (pytest.approx(0.5, rel=1e-3), pytest.approx(0.1, rel=1e-3))


def test_the_same_layers_under_another_name_are_not_another_strategy():
    top, deep = RUN | {"strategy": "top"}, RUN | {"strategy": "deep", "layers": [3]}
    runs = {"band": [RUN], "top": [top], "deep": [deep], "LoRA": [RUN | {"rank": 2}], "full": [FULL]}
    assert outcomes.distinct(Study({}, runs, [], [], {}, {})) == ["band", "deep", "LoRA", "full"]


def test_the_best_rate_is_the_lowest_of_those_alike_and_never_one_without_a_number():
    assert outcomes.best_rate({1.0: math.nan, 0.3: 2.0, 0.1: 2.0, 0.01: 3.0}) == 0.1
    assert outcomes.best_rate({0.5: math.nan}) == 0.5


def test_a_curve_is_the_mean_of_the_seeds_that_got_there():
    runs = [{"loss": [[10, 4.0], [20, 2.0]]}, {"loss": [[10, 6.0]]}, {"loss": []}]
    assert outcomes.curve(runs).to_dict() == {10: 5.0, 20: 2.0}
    assert outcomes.curve(runs[2:]).empty


def test_last_losses_are_of_the_last_tenth():
    run = {"loss": [[step, float(step)] for step in range(40)]}
    assert outcomes.last_losses([run, {"loss": [[1, 5.0]]}]).tolist() == [[37.5], [5.0]]
    assert outcomes.last_losses([{"loss": []}]).tolist() == [[np.inf]]  # it diverged at once


def test_a_rate_at_an_end_is_named():
    tried = {"low": {0.1: 1.0, 0.3: 2.0}, "inside": {0.3: 1.0, 0.1: 2.0, 0.9: 3.0}, "given": {0.3: np.nan}}
    assert Study({}, {}, [], [], {}, {}, tried).at_an_end() == ["low"]


@pytest.mark.slow
def test_a_ratio_is_that_of_the_claims_at_95_percent(monkeypatch):
    rng = np.random.default_rng(2)
    below = rng.normal(1, 0.3, size=(4, 200))
    above = 0.9 * below + rng.normal(0, 0.1, size=below.shape)
    monkeypatch.setattr(claims, "level", lambda: 0.95)
    assert outcomes.ratio(above, below) == pytest.approx(claims.ratio(above, below), abs=2e-3)
    assert outcomes.ratio(above, below - 1) is None


@pytest.mark.slow
def test_rank_correlation_is_scipys_seed_by_seed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    y = x + rng.normal(size=(12, 3))
    y[3] = y[4]  # a tie
    found, chance = outcomes.rank_correlation(x, y)
    z = np.arctanh([scipy_stats.spearmanr(x[:, i], y[:, i]).statistic for i in range(3)])
    assert found.value == pytest.approx(np.tanh(z.mean()))
    assert found.n == 3
    low, high = np.tanh(scipy_stats.t.interval(0.95, 2, z.mean(), scipy_stats.sem(z)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    # One seed: the distribution that scipy knows.
    null = scipy_stats.spearmanr(x[:, 0], rng.permuted(np.tile(x[:, 0], (1999, 1)), axis=1).T).statistic[0]
    alone = outcomes.rank_correlation(x[:, :1], y[:, :1])[1]
    assert alone == pytest.approx(np.quantile(np.abs(null[1:]), 0.95), abs=0.05)
    assert chance < alone + 0.05


def test_a_correlation_never_leaves_its_range():
    x = np.arange(12.0).reshape(6, 2)
    found, _ = outcomes.rank_correlation(x, -x + [[0, 0], [0, 0], [0, 9], [0, 0], [0, 0], [0, 0]])
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_no_order_is_no_correlation():
    found, chance = outcomes.rank_correlation(np.arange(4.0)[:, None], np.ones((4, 1)))
    assert (found.value, found.low, found.high, chance) == (0, 0, 0, 0)
