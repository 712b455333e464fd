"""Sentences of findings: English, numbers and nulls for every outcome."""

import re

import pandas as pd
import pytest

from vlalign_utils.evidence import across, claim_rules, claims, findings
from vlalign_utils.evidence.claim_rules import Verdict
from vlalign_utils.evidence.intervals import Interval

ABOVE, BELOW, ACROSS = (Interval(v, v - 0.01, v + 0.01, 400) for v in (0.3, -0.3, 0.0))
WIDE = Interval(0.0, -0.2, 0.2, 400)
HIGH, LOW, NEAR = (findings.shown(interval) for interval in (ABOVE, BELOW, ACROSS))
MAIN, _, GUARD = claim_rules.claim("critical-work").conditions
PHRASES = "more", "less", "no difference is shown"


def judged(name: str, *intervals: Interval | None, seeds: int = 9) -> Verdict:
    claim = claim_rules.claim(name)
    return claims.judge(claim, dict(zip(claim.conditions, intervals, strict=True)), seeds)


def reads_well(sentence: str) -> bool:
    return bool(re.fullmatch(r"[“A-Z0-9][^\n]*[^ .,;:]\.", sentence)) and "  " not in sentence


@pytest.mark.parametrize(
    ("interval", "end"),
    [
        (ABOVE, "is 0.300 [0.290, 0.310], N = 400: more."),
        (BELOW, "is −0.300 [−0.310, −0.290], N = 400: less."),
        (ACROSS, "is 0.000 [−0.010, 0.010], N = 400: no difference is shown."),
        (Interval(0.2, 0.2, 0.2, 1), "is 0.200 [0.200, 0.200], N = 1: no difference is shown."),
        (Interval(0.2, 0.0, 0.4, 3), "is 0.200 [0.000, 0.400], N = 3: no difference is shown."),
    ],
)
def test_an_interval_chooses_its_phrase(interval: Interval, end: str) -> None:
    assert findings.compared("the gap", interval, 0, *PHRASES) == f"The gap {end}"


def test_chance_and_depth_are_named() -> None:
    assert findings.against_chance("The score", ABOVE, 0.25).endswith("above chance (0.250).")
    assert findings.against_chance("The score", BELOW, 0.25, "guessing").endswith("below guessing (0.250).")
    assert findings.against_chance("The score", ABOVE, 0.3).endswith("not told apart from chance (0.300).")
    assert findings.depth("The depth", ABOVE).endswith("before the middle of the model.")
    assert findings.depth("The depth", Interval(0.8, 0.6, 1, 4)).endswith("behind the middle of the model.")
    assert findings.depth("The depth", Interval(0.4, 0.25, 0.5, 4)).endswith("holds the middle of the model.")


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (
            judged("critical-work", ABOVE, ABOVE, ABOVE),
            f"supported: {MAIN} is {HIGH}, above 0 as it should be, and all 2 others hold.",
        ),
        (
            judged("critical-work", BELOW, ABOVE, ABOVE),
            f"contradicted: {MAIN} is {LOW}, where the claim needs it above 0.",
        ),
        (
            judged("critical-work", ACROSS, ABOVE, ABOVE),
            f"equivalent: {MAIN} is {NEAR}, less than the smallest effect of interest, 0.05, on either side.",
        ),
        (
            judged("critical-work", WIDE, ABOVE, ABOVE),
            f"undecided: {MAIN} is {findings.shown(WIDE)}, not clearly above 0.",
        ),
        (
            judged("critical-work", ABOVE, ABOVE, ACROSS),
            f"undecided: {GUARD} is {NEAR}, not clearly above 0, so that the measurement itself is not shown "
            "to work.",
        ),
        (
            judged("critical-work", ABOVE, ABOVE, None),
            f"undecided: {GUARD} could not be measured on this model.",
        ),
    ],
)
def test_a_verdict_says_what_decided_it(verdict: Verdict, says: str) -> None:
    told = findings.verdict("critical-work", verdict)
    says_it = claim_rules.claim("critical-work").says.rstrip(".")
    begin = f"“{says_it}” is "
    assert told == begin + says


def test_few_seeds_and_single_conditions_read_well() -> None:
    assert findings.verdict("frozen-core", judged("frozen-core", ABOVE, seeds=1)).endswith(
        f"is undecided: too few seeds (1 of 5); score, band minus connector only is {HIGH}."
    )
    assert findings.verdict("frozen-core", judged("frozen-core", ABOVE)).endswith("above 0 as it should be.")
    two = findings.verdict("bypass", judged("bypass", BELOW, ABOVE))
    assert two.endswith("below 0 as it should be, and its other condition holds too.")
    entry = judged("entry", Interval(0.1, 0.05, 0.12, 9), ABOVE)
    assert findings.verdict("entry", entry).endswith("where the claim needs it above 0.15 and below 0.75.")


def test_conditions_are_rows_with_their_level() -> None:
    shown = findings.conditions({"critical-work": judged("critical-work", BELOW, ABOVE, None)})
    assert shown.columns[3] == f"interval, {100 * claim_rules.level():.2f} %"
    assert shown.iloc[0].tolist() == [
        "critical-work",
        "undecided",
        "loss, inside minus before",
        "−0.300 [−0.310, −0.290], N = 400",
        "above 0 and of interest from 0.05 on",
        "outside",
    ]
    assert shown.iloc[2].tolist()[2:4] == [
        "guard: loss, all windows (decides)",
        "not measurable",
    ]
    assert findings.conditions({}).empty


def test_lists_and_counts() -> None:
    assert [findings.joined(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert [findings.counted(n, "suite") for n in (0, 1, 2)] == ["no suite", "1 suite", "2 suites"]


class TestAcross:
    RANKS = pd.DataFrame(
        {
            "view": ["a", "a", "b", "b"],
            "other view": ["b", "c", "c", "d"],
            "x": [0.5, -0.5, 0.5, 0.9],
            "y": [0.1, -0.1, -0.5, float("nan")],
        }
    )

    def test_verdicts_that_agree_are_counted(self) -> None:
        one, other = (
            judged("critical-work", BELOW, ABOVE, ABOVE),
            judged("critical-work", ABOVE, ABOVE, ABOVE),
        )
        few = judged("frozen-core", ABOVE, seeds=1)
        told = across.verdicts({"x": {"critical-work": one, "frozen-core": few}, "y": {"critical-work": one}})
        assert told == (
            "Of 1 claim judged on two architectures or more, 1 got one verdict on all of them: "
            "critical-work (contradicted on 2)."
        )
        apart = across.verdicts({"x": {"critical-work": one}, "y": {"critical-work": other}})
        assert apart.endswith("none got one verdict on all of them.")
        assert "cannot be compared" in across.verdicts({"x": {"critical-work": one}})
        none = claims.judge(claim_rules.claim("critical-work"), {}, not_applicable="no phase")
        assert "cannot be compared" in across.verdicts(
            {"x": {"critical-work": one}, "y": {"critical-work": none}}
        )

    def test_peaks_give_a_range(self) -> None:
        table = pd.DataFrame({"view": ["a", "a", "b"], "depth of the peak": [0.25, 0.625, 0.5]})
        assert across.peaks(table) == (
            "The curves are highest at these relative depths: “a” at 0.25 to 0.62 (2 architectures) "
            "and “b” at 0.50 (1 architecture)."
        )
        with pytest.raises(ValueError, match="no curve"):
            across.peaks(table[:0])

    def test_orders_need_two_architectures(self) -> None:
        told = across.orders(self.RANKS, ["x", "y"])
        assert told == (
            "Of 4 pairs of views, 1 (the surest: “a” with “b”, 0.10 to 0.50) correlate positively over depth "
            "in every architecture that has both, and 1 (the surest: “a” with “c”, −0.50 to −0.10) "
            "negatively."
        )
        assert across.orders(self.RANKS, ["x"]).count("none") == 2

    def test_seeds_apart_are_counted(self) -> None:
        columns = ["recipe", "chapter", "lowest", "highest", "half-width of one"]
        table = pd.DataFrame(
            [("r", "01", 0.0, 0.3, 0.1), ("r", "01", 0.0, 0.1, 0.1), ("r", "02", 0.0, 0.1, 0.1)],
            columns=columns,
        )
        assert across.seeds(table).startswith(
            "Of 3 numbers that all seeds of a recipe published, 1 lies further"
        )
        assert across.seeds_by_chapter(table).values.tolist() == [["r", "01", 2, 1], ["r", "02", 1, 0]]
        assert across.seeds(table[:0]).startswith("None of these recipes")


@pytest.mark.parametrize("interval", [ABOVE, BELOW, ACROSS])
@pytest.mark.parametrize("name", list(claim_rules.load()))
def test_every_claim_makes_a_sentence(name: str, interval: Interval) -> None:
    conditions = claim_rules.claim(name).conditions
    assert reads_well(findings.verdict(name, judged(name, *[interval] * len(conditions))))
    assert reads_well(findings.verdict(name, judged(name, interval, *[None] * (len(conditions) - 1))))
