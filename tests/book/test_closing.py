import numpy as np
import pytest

from vlalign_utils.book.pages.closing import HEADING, section
from vlalign_utils.evidence import claims
from vlalign_utils.evidence.claim_rules import Lies, Measured, Outcome, Verdict, Word


def judged(word: Word, decided_by: str = "", seeds: int = 1, **conditions: Outcome) -> Verdict:
    return Verdict(
        word=word,
        decided_by=decided_by or next(iter(conditions)),
        conditions=conditions,
        level=0.99,
        seeds=seeds,
    )


def outcome(
    value: float, half: float, lies: Lies, n: int = 100, smallest: float | None = None, guard: bool = False
) -> Outcome:
    found = Measured(value=value, low=value - half, high=value + half, n=n)
    return Outcome(above=0, smallest=smallest, guard=guard, interval=found, lies=lies)


def told(verdict: Verdict) -> str:
    heading, empty, line = section({"c": verdict}).splitlines()
    assert (heading, empty) == (HEADING, "")
    return line.replace("\\", "")


def test_a_chapter_without_claims_has_none() -> None:
    assert section({}) == ""


def test_foretold_items_decide_when_the_mean_stays() -> None:
    """Values of one distribution: with as many as were foretold, the interval no longer holds 0."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=100)
    values += 0.1 - values.mean()
    few = claims.interval(values)
    assert few.low < 0
    verdict = judged("undecided", a=outcome(few.value, (few.high - few.low) / 2, "across"))
    line = told(verdict)
    number = int(line.split("N = ")[1].rstrip("."))
    assert line == f"- *c*, undecided: “a” would lie inside its region with about N = {number}."
    for times, decided in ((1.15, True), (0.85, False)):
        many = np.resize(values, round(number * times))
        many += 0.1 - many.mean()
        assert (claims.interval(many).low > 0) == decided


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (outcome(-0.1, 0.2, "across"), "would lie outside its region with about N = 400"),
        (
            outcome(0.01, 0.06, "across", smallest=0.05),
            "would be shown to be too small to matter with about N = 230",
        ),
        (outcome(0.04, 0.06, "across", smallest=0.05), "would lie inside its region with about N = 230"),
        (
            outcome(0.0, 0.2, "across"),
            "lies at the end of its region, and no usual number of items will tell",
        ),
        (
            outcome(0.001, 0.2, "across"),
            "lies at the end of its region, and no usual number of items will tell",
        ),
    ],
)
def test_undecided_verdicts_say_what_would_be_enough(found: Outcome, said: str) -> None:
    assert told(judged("undecided", a=found)) == f"- *c*, undecided: “a” {said}."


def test_where_no_number_of_items_is_known_none_is_said() -> None:
    seeds = judged("undecided", seeds=5, a=outcome(0.1, 0.2, "across"))
    assert told(seeds).endswith("“a” needs a narrower interval, by more seeds or items.")
    both = outcome(0.1, 0.2, "across").model_copy(update={"below": 1.0})
    assert told(judged("undecided", a=both)).endswith("“a” needs a narrower interval, by more items.")
    missing = Outcome(above=0, interval=None, lies="nowhere")
    guard = outcome(-0.3, 0.1, "outside", guard=True)
    line = told(judged("undecided", a=missing, b=guard, c=outcome(0.5, 0.1, "inside")))
    assert line.endswith(
        "“a” would have to be measurable on this model; “b” would have to be above 0: what is measured does "
        "not work here."
    )


def test_decided_verdicts_say_how_far_they_are_from_another_word() -> None:
    inside, wide = outcome(0.3, 0.1, "inside"), outcome(0.4, 0.3, "inside")
    assert "nearest to that is “b”, by 0.100." in told(judged("supported", a=inside, b=wide))
    line = told(judged("contradicted", a=outcome(-0.3, 0.1, "outside")))
    assert "items on which “a” is above 0; its interval is 0.200 away" in line.replace("Items", "items")
    line = told(judged("equivalent", a=outcome(0.0, 0.01, "equal", smallest=0.05)))
    assert "to care for less than 0.05 of “a”" in line


def test_claims_that_do_not_apply_for_one_reason_share_a_line() -> None:
    none = judged("not applicable", "this model has no phase")
    lines = section({"a": none, "b": none}).splitlines()[2:]
    assert lines == ["- *a* and *b*, not applicable: Another model, for this model has no phase."]
    few = judged("undecided", "3 seeds of 5", a=outcome(0.1, 0.05, "inside"))
    assert told(few) == "- *c*, undecided: 3 seeds of 5; until there are as many, no interval decides it."
