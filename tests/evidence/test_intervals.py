import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from vlalign_utils.evidence import intervals

VALUES = np.random.default_rng(1).normal(size=(300, 3)) + np.array([0.0, 0.5, 2.0])


@pytest.mark.slow
def test_bootstrap_agrees_with_scipy() -> None:
    reference = scipy.stats.bootstrap(
        (VALUES[:, 1],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    ours = intervals.bootstrap_mean(VALUES[:, 1], resamples=20_000)
    assert ours.value == pytest.approx(VALUES[:, 1].mean())
    # Two sets of 20,000 resamples: the ends differ by Monte Carlo error only.
    assert ours.low == pytest.approx(reference.low, abs=0.005)
    assert ours.high == pytest.approx(reference.high, abs=0.005)


def test_a_curve_is_its_points() -> None:
    curve = intervals.bootstrap_curve(VALUES, seed=3)
    for point in range(3):
        alone = intervals.bootstrap_mean(VALUES[:, point], seed=3)
        assert curve.at(point) == pytest.approx(alone)


def test_paired_interval_is_narrower_than_the_spread_of_the_items() -> None:
    noise = np.random.default_rng(4).normal(size=300) * 0.01
    difference = intervals.bootstrap_mean((VALUES[:, 0] + 0.2 + noise) - VALUES[:, 0])
    assert 0.19 < difference.low < 0.2 < difference.high < 0.21


def test_same_seed_same_interval() -> None:
    assert intervals.bootstrap_mean(VALUES[:, 0], seed=5) == intervals.bootstrap_mean(VALUES[:, 0], seed=5)
    assert intervals.bootstrap_mean(VALUES[:, 0], seed=5) != intervals.bootstrap_mean(VALUES[:, 0], seed=6)


def test_streams_of_different_purposes_differ() -> None:
    assert intervals.rng(0, "a").integers(2**62) != intervals.rng(0, "b").integers(2**62)


def test_peak_is_found_and_certain_when_clear() -> None:
    assert intervals.bootstrap_peak(VALUES) == intervals.Interval(2.0, 2.0, 2.0, 300)


def test_peak_of_a_flat_curve_is_uncertain() -> None:
    flat = np.random.default_rng(7).normal(size=(50, 9))
    peak = intervals.bootstrap_peak(flat)
    assert peak.high - peak.low > 3


@pytest.mark.slow
def test_ratio_agrees_with_scipy() -> None:
    above, below = VALUES[:, 1] + VALUES[:, 2], VALUES[:, 2]
    reference = scipy.stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = intervals.bootstrap_ratio(above, below, resamples=20_000)
    assert ours.value == pytest.approx(above.mean() / below.mean())
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=0.005)


def test_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not clearly above 0"):
        intervals.bootstrap_ratio(VALUES[:, 2], VALUES[:, 0])


def test_normalised_score_is_0_at_chance_and_1_when_right() -> None:
    correct = np.array([[True, False], [True, False]])
    assert intervals.above_chance(correct, np.array([0.5, 0.2])).tolist() == [[1.0, -1.0], [1.0, -0.25]]
    guesses = np.random.default_rng(0).random(20_000) < 0.25
    assert intervals.above_chance(guesses, 0.25).mean() == pytest.approx(0, abs=0.02)


def test_curve_table_is_tidy() -> None:
    band = intervals.bootstrap_curve(VALUES)
    table = intervals.curve_table({"a": band, "b": band}, [0.0, 0.5, 1.0])
    assert list(table.columns) == ["curve", "depth", "value", "low", "high"]
    assert table.value.tolist() == [*band.value, *band.value]
    assert table.curve.tolist() == ["a"] * 3 + ["b"] * 3


@pytest.mark.parametrize("values", [np.empty((0, 1)), np.array([[np.nan]])])
def test_unusable_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"no items|finite"):
        intervals.resampled_means(values)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    reference = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    ours = intervals.wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_proportions_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="proportion needs"):
        intervals.wilson(successes, n)


def test_permutation_null_sees_a_pairing_and_nothing_where_there_is_none() -> None:
    x = np.random.default_rng(8).normal(size=200)
    y = np.stack([x, np.random.default_rng(9).normal(size=200)])
    null = intervals.permutation_null(lambda order: y[:, order] @ x / 200, 200)
    assert null.p[0] == pytest.approx(1 / 201)
    assert null.p[1] > 0.05
    assert null.high[0] < null.observed[0]
    assert np.abs(null.mean).max() < 0.05


@pytest.mark.slow
def test_permutation_p_is_uniform_under_the_null() -> None:
    draws = np.random.default_rng(100)
    p = [
        float(
            intervals.permutation_null(lambda o, x=x, y=y: np.array(x @ y[o]), 30, permutations=99, seed=i).p
        )
        for i, (x, y) in enumerate(draws.normal(size=(500, 2, 30)))
    ]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_scaling_keeps_the_items() -> None:
    assert intervals.Interval(4.0, 2.0, 6.0, 50).scaled(0.5) == intervals.Interval(2.0, 1.0, 3.0, 50)


def test_interval_prints_three_decimals() -> None:
    assert str(intervals.wilson(1, 2)) == "0.500 [0.095, 0.905]"
    assert str(intervals.Interval(-1e-9, -0.25, 0.0, 5)) == "0.000 [-0.250, 0.000]"


def test_a_null_band_is_the_middle_of_its_draws():
    drawn = np.random.default_rng(0).random((1000, 3))
    band = intervals.null_band(drawn)
    assert band.n == 1000
    assert band.value == pytest.approx(drawn.mean(axis=0))
    assert band.low == pytest.approx(np.percentile(drawn, 2.5, axis=0))
    assert band.high == pytest.approx(np.percentile(drawn, 97.5, axis=0))
