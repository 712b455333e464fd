import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vlalign_utils.data.items import Item
from vlalign_utils.evidence import claims
from vlalign_utils.evidence.crossed import crossed_mean
from vlalign_utils.tuning import outcomes
from vlalign_utils.tuning.flops import Forward, Part
from vlalign_utils.tuning.outcomes import Study, Trial, spread
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
    "parameters": 10,
    "seconds": 12.0,
}
FULL = RUN | {
    "strategy": "full",
    "layers": [0, 1, 2, 3],
    "connector": True,
    "language": True,
}
FORWARD = Forward(part(100), part(10), (part(20),) * 4, part(5))


def item(choices):
    return Item(None, "?", choices[0], choices, "g", "")


def test_scores_are_above_chance_by_suite():
    evaluation = {"two": [item(("a", "b")), item(("a", "b"))], "four": [item(("a", "b", "c", "d"))]}
    run = {"correct": {"two": [1, 0], "four": [0]}}
    best = {"correct": {"two": [1, 1], "four": [1]}}
    found = Study(run, best, {"band": [run, best]}, evaluation, {})
    assert found.scores("aligned", ["two"]).tolist() == [[1, -1]]
    assert found.scores("tuned", ["four"]).tolist() == [[1]]
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


def test_flops_of_a_training_are_those_of_its_ordinary_steps():
    # Forward of all, gradient through layers 1 to 3 and the head, and the weights of layers 1 and 2.
    step = (100 + 10 + 4 * 20 + 5) + (3 * 20 + 5) + 2 * 20
    assert outcomes.flops(RUN, FORWARD) == pytest.approx(6 * step)
    assert outcomes.flops(RUN | {"steps": 12}, FORWARD) == 2 * outcomes.flops(RUN, FORWARD)


def test_a_step_from_prefixes_has_its_share_of_the_recording():
    # Layers 1 and 2 trained: three forwards each; layer 3 two; layer 0 and the tower once in three epochs.
    found = outcomes.step_features(RUN, 4, 3)
    assert (found.tower, found.units, found.weights) == (pytest.approx(1 / 3), pytest.approx(8 + 1 / 3), 10)
    assert outcomes.step_features(RUN, 4) == Features(1, 9, 10)
    assert outcomes.step_features(FULL, 4) == Features(1, 12, 10)


def test_time_is_a_share_of_full_tunings_ordinary_loop_round_by_round():
    timing = {"taken": {"full": [2.0, 4.0], "band": [1.0, 3.0]}, "from_prefixes": {"band": [0.5, 1.0]}}
    found = Study({}, {}, {}, {}, timing)
    assert found.times("band").tolist() == [[0.5], [0.75]]
    assert found.times("band", "from_prefixes").tolist() == [[0.25], [0.25]]


def test_the_time_model_is_fitted_to_what_a_step_took():
    chosen = {"late": [6, 7], "band": [2, 3], "early": [0, 1], "most": [1, 2, 3, 4, 5], "spread": [1, 4, 6]}
    runs = {name: [RUN | {"strategy": name, "layers": layers}] for name, layers in chosen.items()}

    def seconds(epochs):
        of = {name: outcomes.step_features(run, 8, epochs) for name, (run,) in runs.items()}
        return {name: [4 * (0.5 * f.tower + 0.1 * f.units + 0.2)] * 3 for name, f in of.items()}

    timing = {"steps": 4, "epochs": 3, "taken": seconds(0), "from_prefixes": seconds(3)}
    fit = outcomes.time_model(Study({}, {}, runs, {}, timing), 8)
    assert max(abs(error) for error in fit.errors.values()) < 1e-6
    assert set(fit.errors) == {*chosen, *(f"{name}, from prefixes" for name in chosen)}
    assert (fit.tower, fit.unit) == (pytest.approx(0.5, rel=1e-3), pytest.approx(0.1, rel=1e-3))


def test_the_same_layers_under_another_name_are_not_another_strategy():
    same, deep = RUN | {"strategy": "same"}, RUN | {"strategy": "deep", "layers": [3]}
    runs = {"band": [RUN], "same": [same], "deep": [deep], "LoRA": [RUN | {"rank": 2}], "full": [FULL]}
    assert outcomes.distinct(Study({}, {}, runs, {}, {})) == ["band", "deep", "LoRA", "full"]


def test_the_best_rate_has_the_highest_score_then_the_lower_loss_and_never_one_without_a_number():
    nan = Trial(math.nan, math.nan)
    assert outcomes.best_rate({1.0: nan, 0.3: Trial(2, 0.5), 0.1: Trial(1, 0.5), 0.01: Trial(0, 0.4)}) == 0.1
    assert outcomes.best_rate({0.3: Trial(1, 0.5), 0.1: Trial(1, 0.5)}) == 0.1
    assert outcomes.best_rate({0.5: nan}) == 0.5


def test_a_curve_is_the_mean_of_the_seeds_that_got_there():
    runs = [{"loss": [[10, 4.0], [20, 2.0]]}, {"loss": [[10, 6.0]]}, {"loss": []}]
    assert outcomes.curve(runs).to_dict() == {10: 5.0, 20: 2.0}
    assert outcomes.curve(runs[2:]).empty


def test_last_losses_are_of_the_last_tenth():
    run = {"loss": [[step, float(step)] for step in range(40)]}
    assert outcomes.last_losses([run, {"loss": [[1, 5.0]]}]).tolist() == [[37.5], [5.0]]
    assert outcomes.last_losses([{"loss": []}]).tolist() == [[np.inf]]  # it diverged at once


def test_a_rate_at_an_end_is_named():
    low, high, none = Trial(1.0, 0.2), Trial(1.0, 0.6), Trial(math.nan, math.nan)
    tried = {"low": {0.1: high, 0.3: low}, "inside": {0.3: high, 0.1: low, 0.9: low}, "given": {0.3: none}}
    assert Study({}, {}, {}, {}, {}, tried).at_an_end() == ["low"]


def test_a_correlation_never_leaves_its_range():
    x = np.arange(12.0).reshape(6, 2)
    found, _ = outcomes.rank_correlation(x, -x + [[0, 0], [0, 0], [0, 9], [0, 0], [0, 0], [0, 0]])
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_no_order_is_no_correlation():
    found, chance = outcomes.rank_correlation(np.arange(4.0)[:, None], np.ones((4, 1)))
    assert (found.value, found.low, found.high, chance) == (0, 0, 0, 0)
