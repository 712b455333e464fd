from collections import Counter, defaultdict

import numpy as np
import pytest

from vlalign_utils.data.caption_scores import agreement
from vlalign_utils.data.scenes import held_out
from vlalign_utils.data.suites import SUITES, compositional
from vlalign_utils.data.suites.about import drawn
from vlalign_utils.data.worlds import load_suite

ANSWERED = [name for name, suite in SUITES.items() if suite.metric != "caption"]


@pytest.mark.slow_except("existence", "digits")
@pytest.mark.parametrize("name", SUITES)
def test_items_are_seeded_held_out_and_of_their_suite_s_metric(name, no_pictures):
    items, again, other = (load_suite(name, 30, seed) for seed in (1, 1, 2))
    assert len(items) == 30
    said = [(item.prompt, item.answer, item.caption) for item in items]
    assert said == [(item.prompt, item.answer, item.caption) for item in again]
    assert said != [(item.prompt, item.answer, item.caption) for item in other]
    trained = {(i.prompt, i.caption) for i in load_suite(name, 200, 1, "train") if i.image is not None}
    if name != "digits":  # whose captions are ten words: there the handwriting is held out
        assert not {(i.prompt, i.caption) for i in items} & trained
    for item in items:
        assert item.metric == SUITES[name].metric
        assert (item.image is None) == (name == "text")
        assert 0 <= item.chance < 1


@pytest.mark.slow_except("existence", "digits", "knowledge")
@pytest.mark.parametrize("name", ANSWERED)
def test_answers_are_among_the_choices(name, no_pictures):
    for item in load_suite(name, 60):
        assert item.answer in item.choices
        assert len(set(item.choices)) == len(item.choices)
        assert item.chance >= 1 / len(item.choices) - 1e-9


@pytest.mark.slow_except("digits", "knowledge", "reading")
@pytest.mark.parametrize("name", [name for name in ANSWERED if name not in ("text", "compositional")])
def test_no_blind_rule_beats_chance(name, no_pictures):
    items = load_suite(name, 1500, seed=5)
    named = defaultdict(Counter)
    for item in items:
        named[item.group, len(item.choices)][item.choices.index(item.answer)] += 1
    best = sum(max(count.values()) for count in named.values()) / len(items)
    assert best == pytest.approx(np.mean([item.chance for item in items]), abs=0.03)


@pytest.mark.slow_except("existence", "captions", "charts")
@pytest.mark.parametrize("name", [name for name in SUITES if name != "text"])
def test_a_twin_asks_the_same_of_the_caption(name):
    for item in load_suite(name, 10):
        twin = item.caption_version()
        assert twin.image is None
        assert twin.prompt == f"{item.caption} {item.prompt}"
        assert (twin.answer, twin.choices, twin.metric) == (item.answer, item.choices, item.metric)


def test_vision_centric_suites_are_those_that_pictures_alone_answer():
    seeing = [name for name, suite in SUITES.items() if suite.vision_centric]
    assert seeing == ["attributes", "existence", "counting", "digits", "charts", "reading"]


def test_yes_and_no_are_balanced(no_pictures):
    for name, topic in (("existence", "exists"), ("counting", "relation")):
        asked = [item for item in load_suite(name, 600) if item.group == topic]
        yes = np.mean([item.answer in ("yes", "si") for item in asked])
        assert 0.4 < yes < 0.6
        assert len(asked) > 200


def test_false_captions_change_one_attribute_and_are_as_rare_as_true_ones(no_pictures):
    rng = np.random.default_rng(0)
    seen = set()
    for scene in drawn("scenes", 300, rng, "test"):
        for name, other in compositional.swaps(scene):
            seen.add(name)
            differing = [
                (one, two) for one, two in zip(scene.things, other.things, strict=True) if one != two
            ]
            assert len(differing) == 2
            count = [sum(held_out(t.form, t.colour) for t in s.things) for s in (scene, other)]
            assert count[0] == count[1]
    assert seen == {"colour", "size", "place"}
    for item in load_suite("compositional", 60):
        words = [sorted(choice.replace(",", "").replace(".", "").split()) for choice in item.choices]
        assert words[0] == words[1]
        assert item.choices[0] != item.choices[1]


@pytest.mark.slow
def test_the_chance_of_a_caption_is_that_of_another_picture_s(no_pictures):
    items = load_suite("captions", 300)
    shuffled = [agreement(b.answer, a.answer).mean for a, b in zip(items, items[1:] + items[:1], strict=True)]
    (chance,) = {item.chance for item in items}
    assert chance == pytest.approx(np.mean(shuffled), abs=0.04)


@pytest.mark.slow
def test_text_holds_every_other_question_and_facts(no_pictures):
    items = load_suite("text", 300)
    groups = {item.group for item in items}
    assert {"colour", "exists", "count", "relation", "highest", "read", "digit", "kind", "owner"} <= groups
    assert sum(item.caption == "" for item in items) == 30
    assert all(item.prompt.startswith(item.caption) for item in items)
