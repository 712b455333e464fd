import numpy as np
import pytest
from blank_things import blank_things

from vlalign_utils.evidence.intervals import wilson
from vlalign_utils.inference import lenient_scoring, scoring
from vlalign_utils.inference.scoring import Scores
from vlalign_utils.zoo.suite_scores import as_table, suite_scores


@pytest.fixture
def knowing(monkeypatch):
    """Every second item is right, by lenient rules every item about a style of training."""
    blank_things(monkeypatch)

    def strict(vlm, items, batch_size):
        right = np.arange(len(items)) % 2.0
        return Scores(right, right)

    def both(vlm, items, batch_size):
        right = np.array([float(item.group == "trained styles") for item in items])
        return strict(vlm, items, batch_size), Scores(right, right)

    monkeypatch.setattr(scoring, "evaluate", strict)
    monkeypatch.setattr(lenient_scoring, "evaluate_both", both)


def test_groups_are_scored_apart_with_as_many_items_each(knowing, tiny_vlm):
    found = suite_scores(tiny_vlm, "things", 20, ["naming", "digits"])
    assert list(found) == ["naming", "digits"]
    naming = found["naming"]
    assert (naming["n"], naming["value"], naming["strict"], naming["informative"]) == (40, 0.5, 0.5, True)
    trained, other = naming["groups"]["trained styles"], naming["groups"]["held-out style"]
    assert (trained["value"], trained["strict"], other["value"], other["strict"]) == (1, 0, 0, 1)
    assert trained["n"] == other["n"] == 20
    assert trained["low"] == pytest.approx(wilson(20, 20).low, abs=1e-4)
    assert (found["digits"]["n"], found["digits"]["chance"], found["digits"]["groups"]) == (20, 0.1, {})


def test_the_drawn_world_is_scored_by_strict_rules_alone(knowing, tiny_vlm):
    found = suite_scores(tiny_vlm, "drawn", 10, ["digits"])
    assert set(found["digits"]) == {"value", "low", "high", "chance", "n", "informative"}


def test_a_table_has_a_line_for_each_suite_and_group(knowing, tiny_vlm):
    lines = as_table(suite_scores(tiny_vlm, "things", 10, ["naming", "digits"])).splitlines()
    assert [line[:16].strip() for line in lines[1:]] == [
        "naming",
        "trained styles",
        "held-out style",
        "digits",
    ]
    assert lines[1].split() == ["naming", "0.500", "[0.299,", "0.701]", "0.500", "0.003", "20"]


def test_unknown_worlds_and_suites_are_refused(tiny_vlm):
    with pytest.raises(ValueError, match="no world 'moon'; there are drawn, things"):
        suite_scores(tiny_vlm, "moon", 10)
    with pytest.raises(ValueError, match="no suite 'colours' in the world 'things'"):
        suite_scores(tiny_vlm, "things", 10, ["colours"])


@pytest.fixture(scope="module")
def tiny_vlm():
    from tiny_models import build

    return build("llava")[0]
