"""Verdicts on planted data, through the same code as in the chapters, and how often they are false."""

import numpy as np
import pytest
import scipy.stats

from vlalign_utils.evidence import claim_rules, claims, intervals
from vlalign_utils.evidence.claim_rules import Claim, ClaimError
from vlalign_utils.evidence.intervals import Interval

NAN = float("nan")


def claim(conditions: dict[str, dict[str, float | bool]], seeds: int = 1) -> Claim:
    filled = dict.fromkeys(("says", "statistic", "formula", "against", "depth", "heading"), "x")
    more = {"source": "paper", "works": "x", "chapter": "04_causal", "seeds": seeds, "conditions": conditions}
    return Claim.model_validate({"id": "one", **filled, **more})


ONE = claim({"a": {"above": 0}})
GUARDED = claim({"a": {"above": 0, "below": 1}, "works": {"above": 0, "guard": True}})


def planted(mean: float, seed: int = 0, n: int = 200) -> Interval:
    """The interval of items whose true mean is `mean`, with noise of standard deviation 0.5."""
    return claims.interval(intervals.rng(seed, "planted").normal(mean, 0.5, n), seed)


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples, drawn once for all simulated data of one size: only to make simulations fast."""
    counts: dict[int, np.ndarray] = {}

    def means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
        n = len(values)
        if n not in counts:
            counts[n] = intervals.resampled_means(np.eye(n), seed, resamples)
        return counts[n] @ values

    monkeypatch.setattr(claims, "resampled_means", means)
    monkeypatch.setattr(claims, "RESAMPLES", 4000)


class TestVerdict:
    @pytest.mark.parametrize(
        ("mean", "guard", "word", "by"),
        [
            (0.5, 0.5, "supported", "a"),
            (-0.5, 0.5, "contradicted", "a"),
            (1.5, 0.5, "contradicted", "a"),
            (0.0, 0.5, "undecided", "a"),
            (0.5, 0.0, "undecided", "works"),
            (0.5, -0.5, "undecided", "works"),
            (-0.5, -0.5, "undecided", "works"),
        ],
    )
    def test_planted(self, mean: float, guard: float, word: str, by: str) -> None:
        verdict = claims.judge(GUARDED, {"a": planted(mean), "works": planted(guard, 1)})
        assert (verdict.word, verdict.decided_by) == (word, by)
        assert verdict.level == claim_rules.level()

    @pytest.mark.slow
    def test_one_condition_outside_is_enough_and_all_must_be_inside(self) -> None:
        two = claim({"a": {"above": 0}, "b": {"below": 1}})
        assert claims.judge(two, {"a": planted(0.5), "b": planted(0.5)}).word == "supported"
        assert claims.judge(two, {"a": planted(0.5), "b": planted(1)}).decided_by == "b"
        against = claims.judge(two, {"a": planted(0), "b": planted(2)})
        assert (against.word, against.decided_by) == ("contradicted", "b")

    @pytest.mark.parametrize(
        ("ends", "lies"),
        [
            ((-0.09, 0.09), "equal"),
            ((0.01, 0.09), "equal"),  # above 0, but by less than is of interest
            ((-0.09, -0.01), "equal"),
            ((-0.1, 0.09), "across"),
            ((0.01, 0.1), "inside"),
            ((-0.2, -0.05), "outside"),
        ],
    )
    @pytest.mark.parametrize("side", [1, -1])
    def test_less_than_the_smallest_effect_of_interest_is_none(
        self, ends: tuple[float, float], lies: str, side: int
    ) -> None:
        region: dict[str, float | bool] = {"above" if side == 1 else "below": 2, "smallest": 0.1}
        low, high = sorted(2 + side * end for end in ends)
        verdict = claims.judge(claim({"a": region}), {"a": Interval((low + high) / 2, low, high, 9)})
        words = {"equal": "equivalent", "inside": "supported", "outside": "contradicted"}
        assert (verdict.conditions["a"].lies, verdict.word) == (lies, words.get(lies, "undecided"))

    def test_a_condition_outside_or_a_guard_goes_before_equivalence(self) -> None:
        near, far = Interval(0.0, -0.01, 0.01, 9), Interval(-1.0, -1.1, -0.9, 9)
        two = claim({"a": {"above": 0, "smallest": 0.1}, "b": {"above": 0}})
        assert claims.judge(two, {"a": near, "b": far}).word == "contradicted"
        guarded = claim({"a": {"above": 0, "smallest": 0.1}, "works": {"above": 0, "guard": True}})
        assert claims.judge(guarded, {"a": near, "works": near}).decided_by == "works"

    @pytest.mark.parametrize("region", [{"above": 0, "below": 1}, {"above": 0, "guard": True}])
    def test_a_smallest_effect_needs_one_end_and_no_guard(self, region: dict[str, float | bool]) -> None:
        with pytest.raises(ValueError, match="`smallest` goes with one of"):
            claim({"a": {"above": 0}, "b": {**region, "smallest": 0.1}})

    def test_a_claim_that_cannot_be_asked_says_why(self) -> None:
        verdict = claims.judge(GUARDED, {"a": None, "works": None}, not_applicable="no phase was found")
        assert (verdict.word, verdict.decided_by) == ("not applicable", "no phase was found")
        assert claims.judge(GUARDED, {}, not_applicable="no phase was found") == verdict

    @pytest.mark.parametrize("ends", [(0.0, 0.0), (0.0, 0.5), (-0.5, 0.0)])
    def test_an_interval_that_touches_its_boundary_decides_nothing(self, ends: tuple[float, float]) -> None:
        verdict = claims.judge(ONE, {"a": Interval(0.0, *ends, 9)})
        assert (verdict.word, verdict.conditions["a"].lies) == ("undecided", "across")

    @pytest.mark.parametrize("mean", [0.5, -0.5])
    def test_too_few_seeds_decide_nothing(self, mean: float) -> None:
        trained = claim({"a": {"above": 0}}, seeds=3)
        few = claims.judge(trained, {"a": planted(mean)}, seeds=2)
        assert (few.word, few.decided_by) == ("undecided", "too few seeds (2 of 3)")
        assert claims.judge(trained, {"a": planted(mean)}, seeds=3).word != "undecided"

    def test_what_could_not_be_measured_decides_nothing(self) -> None:
        assert claims.judge(ONE, {"a": None}).word == "undecided"
        two = claim({"a": {"above": 0}, "b": {"above": 0}})
        assert claims.judge(two, {"a": None, "b": planted(-0.5)}).word == "contradicted"
        assert "not measurable" in str(claims.judge(ONE, {"a": None}))

    def test_conditions_must_be_those_of_the_claim(self) -> None:
        with pytest.raises(ClaimError, match=r"'one' misses \['works'\]; it has: \['a', 'works'\]"):
            claims.judge(GUARDED, {"a": planted(0.5)})
        with pytest.raises(ClaimError, match=r"'one' does not have \['b'\]"):
            claims.judge(ONE, {"a": planted(0.5), "b": planted(0.5)})

    @pytest.mark.parametrize("interval", [Interval(NAN, 0.1, 0.2, 5), Interval(0.1, 0.1, NAN, 5)])
    def test_an_interval_must_be_finite(self, interval: Interval) -> None:
        with pytest.raises(ClaimError, match=r"'one': a: .*finite"):
            claims.judge(ONE, {"a": interval})

    def test_in_words(self) -> None:
        verdict = claims.judge(
            GUARDED, {"a": Interval(0.5, 0.4, 0.6, 50), "works": Interval(0.2, -0.1, 0.4, 9)}
        )
        assert str(verdict).splitlines() == [
            "undecided, by works",
            "  a: 0.500 [0.400, 0.600], N = 50: inside (above 0, below 1)",
            "  guard, works: 0.200 [-0.100, 0.400], N = 9: across (above 0)",
            "  intervals at 99.55 %, seeds: 1",
        ]


class TestInterval:
    def test_is_the_bootstrap_at_the_corrected_level(self) -> None:
        values = intervals.rng(0, "values").normal(0.3, 1, 400)
        t = scipy.stats.t(399, values.mean(), values.std(ddof=1) / 20)
        found = claims.interval(values)
        assert found.value == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx(t.interval(claim_rules.level()), abs=0.01)
        assert found.n == 400

    @pytest.mark.slow
    def test_seeds_widen_it(self) -> None:
        items = intervals.rng(1, "items").normal(0.3, 0.2, 300)
        same, apart = np.stack([items] * 3), items + np.array([[-0.02], [0.0], [0.02]])
        alone = claims.interval(items)
        assert claims.interval(same)[:3] == pytest.approx(alone[:3], abs=0.001)
        assert claims.interval(apart).value == pytest.approx(alone.value)
        t = scipy.stats.t(2).ppf((1 + claim_rules.level()) / 2) * 0.02 / np.sqrt(3)
        half = claims.interval(apart).high - alone.value
        assert 1.5 * (alone.high - alone.value) < half < np.hypot(t, alone.high - alone.value)

    def test_one_number_per_seed(self) -> None:
        times = np.array([[0.80], [0.82], [0.81]])
        expected = scipy.stats.t(2, 0.81, scipy.stats.sem(times[:, 0])).interval(claim_rules.level())
        found = claims.interval(times)
        assert (found.low, found.high, found.n) == (*map(pytest.approx, expected), 3)

    @pytest.mark.parametrize("values", [np.ones(1), np.ones((1, 1)), np.ones((2, 2, 2))])
    def test_a_single_number_has_none(self, values: np.ndarray) -> None:
        with pytest.raises(ValueError, match="no interval"):
            claims.interval(values)

    def test_a_peak_is_a_relative_depth(self) -> None:
        curve = intervals.rng(2, "curve").normal(size=(200, 9)) + 5 * (np.arange(9) == 4)
        assert claims.peak(curve) == Interval(0.5, 0.5, 0.5, 200)

    def test_a_ratio_agrees_with_the_bootstrap(self) -> None:
        below = intervals.rng(3, "below").normal(0.6, 0.3, 500)
        above = below + intervals.rng(3, "above").normal(-0.01, 0.1, 500)
        reference = intervals.bootstrap_ratio(above, below, 1, 20_000, claim_rules.level())
        found = claims.ratio(above, below)
        assert found is not None
        assert found == pytest.approx(reference, abs=0.004)

    def test_a_ratio_to_nothing_is_not_measurable(self) -> None:
        noise = intervals.rng(4, "noise").normal(size=50)
        assert claims.ratio(noise, noise) is None

    def test_enough_resamples_lie_beyond_its_ends(self) -> None:
        assert claims.RESAMPLES * (1 - claim_rules.level()) / 2 > 25


@pytest.mark.slow
class TestRates:
    """False verdicts where the truth is known, against their nominal rate by an exact binomial test."""

    def rate(self, false: int, of: int, nominal: float) -> None:
        assert scipy.stats.binomtest(false, of, nominal, alternative="greater").pvalue > 0.01, (false, of)

    @pytest.mark.usefixtures("drawn_once")
    def test_at_a_null_no_more_verdicts_than_nominal(self) -> None:
        """No difference: 600 paired comparisons of right and wrong answers, 600 of continuous effects."""
        draws = intervals.rng(0, "null")
        answers = draws.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=(600, 150))
        for effects in (answers, draws.normal(size=(600, 150))):
            words = [claims.judge(ONE, {"a": claims.interval(values)}).word for values in effects]
            self.rate(len(words) - words.count("undecided"), len(words), 1 - claim_rules.level())

    @pytest.mark.usefixtures("drawn_once")
    @pytest.mark.parametrize("between_seeds", [0.0, 0.05, 1.0])
    def test_with_three_seeds(self, between_seeds: float) -> None:
        """No difference on average, items and seeds both at random, at seeds that differ little or a lot."""
        draws, words = intervals.rng(1, f"seeds {between_seeds}"), []
        for _ in range(600):
            trained = draws.normal(0, between_seeds, (3, 1)) if between_seeds else np.zeros((3, 1))
            values = trained + draws.normal(size=100) + draws.normal(0, 0.3, (3, 100))
            words.append(claims.judge(ONE, {"a": claims.interval(values)}, 3).word)
        self.rate(len(words) - words.count("undecided"), len(words), 1 - claim_rules.level())

    @pytest.mark.usefixtures("drawn_once")
    def test_a_true_claim_of_two_conditions_is_rarely_contradicted(self) -> None:
        """Both statistics at the very edge of their regions: each side contributes at most its half."""
        two = claim({"a": {"above": 0}, "b": {"above": 0}})
        draws = intervals.rng(2, "edge").normal(size=(600, 2, 150))
        words = [claims.judge(two, {"a": claims.interval(a), "b": claims.interval(b)}).word for a, b in draws]
        self.rate(words.count("contradicted"), len(words), 1 - claim_rules.level())
        self.rate(words.count("supported"), len(words), (1 - claim_rules.level()) / 2)


class TestHalves:
    def test_share_all_items_and_no_item(self) -> None:
        first, second = claims.halves(101)
        assert sorted([*first, *second]) == list(range(101))
        assert (len(first), len(second)) == (50, 51)

    def test_are_seeded(self) -> None:
        assert claims.halves(50, 1)[0].tolist() == claims.halves(50, 1)[0].tolist()
        assert claims.halves(50, 1)[0].tolist() != claims.halves(50, 2)[0].tolist()

    def test_a_choice_among_null_effects_does_not_flatter_the_test(self) -> None:
        """The best of 20 null windows looks good on the half it was chosen on, and only there."""
        effects = intervals.rng(5, "windows").normal(size=(400, 20))
        first, second = claims.halves(400)
        best = effects[first].mean(axis=0).argmax()
        assert claims.interval(effects[first][:, best]).value > 0.1
        assert claims.judge(ONE, {"a": claims.interval(effects[second][:, best])}).word == "undecided"

    def test_one_item_cannot_be_halved(self) -> None:
        with pytest.raises(ValueError, match="1 items cannot be halved"):
            claims.halves(1)
