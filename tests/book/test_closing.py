import numpy as np
import pytest
from scipy.stats import norm

from vlalign_utils.book.pages.closing import CHANCE, FORETOLD, HEADING, section
from vlalign_utils.evidence.claim_rules import Lies, Measured, Outcome, Verdict, Word


def judged(word: Word, decided_by: str = "", seeds: int = 1, **conditions: Outcome) -> Verdict:
    first = decided_by or next(iter(conditions))
    return Verdict(word=word, decided_by=first, conditions=conditions, level=0.99, seeds=seeds)


def outcome(
    value: float, half: float, lies: Lies, smallest: float | None = None, guard: bool = False
) -> Outcome:
    found = Measured(value=value, low=value - half, high=value + half, n=100)
    return Outcome(above=0, smallest=smallest, guard=guard, interval=found, lies=lies)


def told(verdict: Verdict) -> str:
    before, line = section({"c": verdict}).replace("\\", "").split(f"\n\n- *c*, {verdict.word}: ")
    assert before == (f"{HEADING}\n\n{FORETOLD}" if "N =" in line else HEADING)
    return line


def test_a_chapter_without_claims_has_none() -> None:
    assert section({}) == ""


def test_foretold_items_decide_as_often_as_is_said() -> None:
    """Intervals of means that are drawn around the mean that was found, with as many items as foretold."""
    value, half, n = 0.1, 0.2, 100
    number = int(told(judged("undecided", a=outcome(value, half, "across"))).split("N = ")[1].rstrip("."))
    error = half / norm.ppf(0.995) * np.sqrt(n / number)
    means = np.random.default_rng(0).normal(value, error, 20_000)
    assert np.mean(means - norm.ppf(0.995) * error > 0) == pytest.approx(CHANCE, abs=0.02)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (outcome(-0.1, 0.2, "across"), "would lie outside its region with about N = 710."),
        (outcome(0.01, 0.06, "across", 0.05), "would be shown to be too small to matter with about N = 400."),
        (outcome(0.04, 0.06, "across", 0.05), "would lie inside its region with about N = 400."),
        (
            outcome(0.0, 0.2, "across"),
            "lies at the end of its region, and no usual number of items will tell.",
        ),
        (
            outcome(0.01, 0.2, "across"),
            "lies at the end of its region, and no usual number of items will tell.",
        ),
    ],
)
def test_undecided_verdicts_say_what_would_be_enough(found: Outcome, said: str) -> None:
    assert told(judged("undecided", a=found)) == f"“a” {said}"


def test_of_a_skewed_interval_the_side_counts_that_is_across() -> None:
    for low, high, said in ((-0.02, 0.9, "N = 260"), (-0.2, 0.11, "N = 1600")):
        skewed = Measured(value=0.1, low=low, high=high, n=100)
        found = outcome(0.1, 0.2, "across").model_copy(update={"interval": skewed})
        assert said in told(judged("undecided", a=found))


def test_where_no_number_of_items_is_known_none_is_said() -> None:
    seeds = judged("undecided", seeds=5, a=outcome(0.1, 0.2, "across"))
    assert told(seeds) == "“a” needs a narrower interval."
    both = outcome(0.1, 0.2, "across").model_copy(update={"below": 1.0})
    assert told(judged("undecided", a=both)) == "“a” needs a narrower interval."


def test_what_is_not_measured_or_does_not_work_is_named() -> None:
    missing = Outcome(above=0, interval=None, lies="nowhere")
    outside, across = (
        outcome(-0.3, half, lies, guard=True) for half, lies in ((0.1, "outside"), (0.4, "across"))
    )
    line = told(judged("undecided", a=missing, b=missing, c=outside, d=across, e=outcome(0.5, 0.1, "inside")))
    assert line == (
        "a model on which “a” and “b” can be measured; “c” would have to be above 0: what is measured does "
        "not work here; “d” would have to be above 0: what is measured does not work here."
    )
    works = outcome(0.1, 0.2, "across", guard=True)
    assert "“b” would lie inside" in told(judged("undecided", "b", a=outcome(0.5, 0.1, "inside"), b=works))


def test_supported_verdicts_say_which_interval_is_nearest_to_leave() -> None:
    inside, wide = outcome(0.3, 0.1, "inside"), outcome(0.4, 0.3997, "inside")
    line = told(judged("supported", a=inside, b=wide))
    assert line.startswith("other items for which one of its intervals reaches out of its region")
    assert line.endswith("nearest to that is “b”, by 0.0003.")
    assert told(judged("supported", seeds=5, a=inside)).startswith("other seeds or items")


def test_contradicted_verdicts_name_all_that_lies_outside() -> None:
    guard = outcome(0.5, 0.1, "inside", guard=True)
    one, two = outcome(-0.3, 0.1, "outside"), outcome(-0.5, 0.1, "outside")
    assert told(judged("contradicted", a=one, b=two, c=guard)) == (
        "other items for which “a” is above 0, where its interval is 0.2 away and “b” is above 0, where its "
        "interval is 0.4 away; more of these will hardly do."
    )
    ends = outcome(0.1, 0.05, "outside").model_copy(update={"above": 0.2, "below": 0.75})
    assert "is above 0.2 and below 0.75, where its interval is 0.05 away" in told(
        judged("contradicted", a=ends)
    )
    high = outcome(0.9, 0.05, "outside").model_copy(update={"above": 0.2, "below": 0.75})
    assert "0.1 away" in told(judged("contradicted", a=high))


def test_equivalent_verdicts_say_whether_more_items_are_needed() -> None:
    around = judged("equivalent", a=outcome(0.0, 0.01, "equal", 0.05))
    less = "a reason to care for less than 0.05 of “a”"
    assert told(around) == f"{less}: more items would then have to tell on which side it lies."
    beside = told(judged("equivalent", seeds=5, a=outcome(0.03, 0.01, "equal", 0.05)))
    assert beside == f"{less}, for its interval lies on one side of 0."


def test_claims_that_do_not_apply_for_one_reason_share_a_line() -> None:
    none = judged("not applicable", "this model has no phase: it is -1.5")
    (line,) = section({"a": none, "b": none}).removeprefix(HEADING).strip().splitlines()
    assert line.replace("\\", "") == (
        "- *a* and *b*, not applicable: a model that it can be asked of, or more scenes if this was close: "
        "this model has no phase: it is −1.5."
    )
    few = judged("undecided", "3 seeds of 5", a=outcome(0.1, 0.05, "inside"))
    assert told(few) == "3 seeds of 5; until there are as many, no interval decides it."
