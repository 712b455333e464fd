import json

import numpy as np
import pytest

from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.evidence.intervals import bootstrap_mean, wilson
from vlalign_utils.zoo import bars
from vlalign_utils.zoo.bars import Bar, measured
from vlalign_utils.zoo.scores_file import ChainScores


def test_bars_of_the_things_are_about_suites_and_groups_there_are():
    suites = WORLDS["things"].suites
    for asked in bars.THINGS:
        assert asked.suite in suites
        assert asked.group is None or asked.group in suites[asked.suite].groups
        assert asked.least < 0 if asked.beside else 0 < asked.least < 1
    assert len({(asked.suite, asked.group) for asked in bars.THINGS}) == len(bars.THINGS)


def chain(name, **stages):
    """Scores on twelve items of one suite, in two groups in turn."""
    about = {
        "metric": "answer",
        "n": 12,
        "chance": 0.1,
        "groups": {"a": 0.1, "b": 0.1},
        "group": [0, 1] * 6,
    }
    scored = {
        stage: {"naming": {"inputs": "x", "seconds": 1, "strict": "0" * 12, "lenient": lenient}}
        for stage, lenient in stages.items()
    }
    text = {
        "chain": name,
        "world": "things",
        "dtype": "float32",
        "suites": {"naming": about},
        "stages": scored,
    }
    return ChainScores.model_validate_json(json.dumps(text))


FIRST, SECOND = chain("one", base="0" * 12, tuned="110" * 4), chain("two", base="10" * 6, tuned="1" * 12)


def test_a_score_is_that_of_the_group_by_lenient_rules():
    assert measured([FIRST], "tuned", Bar("naming", 0.8)) == wilson(8, 12)
    assert measured([FIRST], "tuned", Bar("naming", 0.8, "b")) == wilson(4, 6)


def test_a_score_beside_a_stage_is_the_difference_on_the_same_items():
    found = measured([SECOND], "tuned", Bar("naming", -0.05, beside="base"))
    assert found == bootstrap_mean(np.array([0.0, 1.0] * 6))


def test_seeds_are_taken_together():
    found = measured([FIRST, SECOND], "tuned", Bar("naming", 0.8))
    assert found.value == pytest.approx((8 / 12 + 1) / 2)
    assert found.low < found.value < found.high == 1
    assert found.n == 12


def test_what_was_not_scored_is_nothing():
    assert measured([FIRST], "aligned", Bar("naming", 0.8)) is None
    assert measured([FIRST, chain("three")], "tuned", Bar("naming", 0.8)) is None
    assert measured([chain("three", tuned="1" * 12)], "tuned", Bar("naming", 0, beside="base")) is None


@pytest.mark.parametrize(("least", "reached"), [(8 / 12, True), (0.7, False), (0.6, True)])
def test_a_bar_is_reached_from_the_mean_on(least, reached):
    asked = Bar("naming", least)
    assert asked.reached(measured([FIRST], "tuned", asked)) is reached
