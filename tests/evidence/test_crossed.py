import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from vlalign_utils.evidence.crossed import crossed_mean
from vlalign_utils.evidence.intervals import bootstrap_mean, wilson

WIDE = (-100.0, 100.0)


def one_sample(values):
    return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))


def test_seeds_that_agree_on_every_item_count_as_one():
    of_items = np.random.default_rng(0).normal(size=40)
    found = crossed_mean(np.stack([of_items] * 3), bounds=WIDE)
    assert found[:3] == pytest.approx((of_items.mean(), *one_sample(of_items)))
    assert found.n == 40


def test_items_that_are_all_alike_leave_the_seeds():
    of_seeds = np.array([0.5, 0.7, 0.9, 0.6])
    found = crossed_mean(np.repeat(of_seeds[:, None], 50, axis=1), bounds=WIDE)
    assert found[1:3] == pytest.approx(one_sample(of_seeds))


def test_one_seed_has_the_interval_of_its_items():
    scores = np.array([[1.0, 0, 1, 1, 0, 1, 1, 1]])
    assert crossed_mean(scores) == wilson(6, 8)
    assert crossed_mean(scores - 0.5, bounds=(-1.0, 1.0)) == bootstrap_mean(scores[0] - 0.5)


def test_all_right_is_no_certainty():
    assert crossed_mean(np.ones((3, 20))) == wilson(20, 20)


def test_an_interval_stays_within_the_bounds_of_a_score():
    found = crossed_mean(np.array([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]]))
    assert found.low < found.value < found.high == 1


@pytest.mark.parametrize("scores", [np.ones((0, 3)), np.ones((2, 0)), np.array([[np.nan, 1.0]])])
def test_what_is_no_score_is_refused(scores):
    with pytest.raises(ValueError, match="must be finite, of at least one seed and one item"):
        crossed_mean(scores)


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.2])
def test_the_true_mean_is_covered(between):
    """Three seeds on 500 items, whose abilities and difficulties differ; by simulation."""
    rng = np.random.default_rng(1)
    ability, difficulty = rng.normal(0, between, 10**6), rng.normal(0, 1.5, 10**6)
    truth = expit(1 + ability + difficulty).mean()
    inside = 0
    for _ in range(1000):
        right = expit(1 + rng.normal(0, between, (3, 1)) + rng.normal(0, 1.5, (1, 500)))
        found = crossed_mean((rng.random(right.shape) < right).astype(float))
        inside += found.low <= truth <= found.high
    assert 930 <= inside <= 985


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.01, 0.03, 0.05])
def test_coverage_at_the_sizes_of_the_study(between):
    """Five seeds, 500 items, as an audit found them: seeds differ little, the interaction a lot."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        values = 0.3 + rng.normal(0, between, (5, 1)) + rng.normal(0, 0.3, (1, 500))
        found = crossed_mean(values + rng.normal(0, 0.6, values.shape), bounds=WIDE)
        inside += found.low <= 0.3 <= found.high
    assert 0.93 <= inside / 2000 <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
def test_coverage_of_one_model_s_losses(n):
    """Paired differences of probabilities, which pile up at their ends; no seeds."""
    rng = np.random.default_rng(1)
    truth = 0.5 / 0.8 - 0.5 / 1.3
    inside = 0
    for seed in range(500):
        found = bootstrap_mean(rng.beta(0.5, 0.3, n) - rng.beta(0.5, 0.8, n), seed)
        inside += found.low <= truth <= found.high
    assert 0.93 <= inside / 500 <= 0.97
