import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from blank_things import blank_things
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from vlalign_utils.data.lenient import is_right, normalised
from vlalign_utils.data.things.splits import (
    HELD_OUT_STYLE,
    held_out,
    kind_asked,
    shows_held_out,
    trained_things,
)
from vlalign_utils.data.things.suites import SUITES, about, languages, naming, text
from vlalign_utils.data.things.suites import captions as captions_suite
from vlalign_utils.data.things.table import by_name
from vlalign_utils.data.worlds import load_suite

FREE = [name for name, suite in SUITES.items() if suite.metric == "answer" and name != "text"]
SCENES = (
    "naming",
    "unseen",
    "existence",
    "counting",
    "relations",
    "kind",
    "languages",
    "compositional",
    "captions",
)


@pytest.fixture
def no_images(monkeypatch):
    blank_things(monkeypatch)


def drawn(monkeypatch, name, n, seed=0, split="test"):
    """Items of a suite, and the subjects of their images."""
    subjects = []
    blank = about.Image.new("RGB", (8, 8))
    monkeypatch.setattr(about, "image_of", lambda subject: (subjects.append(subject), blank)[1])
    return load_suite(name, n, seed, split, world="things"), subjects


def load(name, n, seed=0, split="test"):
    return load_suite(name, n, seed, split, world="things")


@pytest.mark.slow_except("naming", "unseen", "kind", "charts", "text")
@pytest.mark.parametrize("name", SUITES)
def test_items_are_seeded_and_of_their_suite_s_metric(name, no_images):
    said = [
        [(i.prompt, i.answer, i.choices, i.caption, i.group) for i in load(name, 12, seed)]
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]
    for item in load(name, 12):
        assert item.metric == SUITES[name].metric
        assert (item.image is None) == (name == "text")
        assert 0 < item.chance < 1
        assert item.answer
        assert item.caption[0].isupper()
        assert item.caption.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SUITES if name != "text"])
def test_five_hundred_images_are_all_different(name, monkeypatch):
    items, subjects = drawn(monkeypatch, name, 500, 3)
    assert len(items) == len(set(subjects)) == 500


@pytest.mark.slow_except("existence", "counting", "charts", "unseen", "kind")
@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.metric != "cider"])
def test_answers_are_among_different_choices_and_right_by_lenient_rules(name, no_images):
    for item in load(name, 30):
        assert item.answer in item.choices
        assert len(set(item.choices)) == len(item.choices)
        if item.metric == "answer":
            own = (item.answer, item.accepted, item.choices, item.prompt)
            assert is_right(item.answer, *own)
            assert is_right(item.answer.lower() + ".", *own)
            assert all(is_right(other, *own) for other in item.accepted)
            wrong = [c for c in item.choices[:40] if normalised(c) not in map(normalised, own[1] + own[:1])]
            assert not any(is_right(choice, *own) for choice in wrong)


@pytest.mark.slow_except("charts", "digits", "kind")
@pytest.mark.parametrize("name", FREE)
def test_no_blind_rule_beats_chance(name, no_images):
    """To give always the same answer, or always the same of the choices, in each group of questions."""
    groups = defaultdict(list)
    for item in load(name, 1000, seed=5):
        groups[item.group].append(item)
    for group in groups.values():
        right = Counter(t for i in group for t in {normalised(a) for a in (i.answer, *i.accepted)})
        places = defaultdict(Counter)
        for item in group:
            places[len(item.choices)][item.choices.index(item.answer)] += 1
        best = max(max(right.values()), sum(max(count.values()) for count in places.values())) / len(group)
        assert best == pytest.approx(np.mean([item.chance for item in group]), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["existence", "counting", "relations"])
def test_the_words_of_a_question_do_not_tell_its_answer(name, no_images):
    """A classifier of questions, fitted on those that may be trained on, answers no better than by chance."""
    train, test = (
        [i for i in load(name, 1500, 7, split) if len(i.choices) < 10] for split in ("train", "test")
    )
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=500))
    model.fit([i.prompt for i in train], [i.answer for i in train])
    score = model.score([i.prompt for i in test], [i.answer for i in test])
    assert score < np.mean([item.chance for item in test]) + 0.05


@pytest.mark.slow_except("charts")
@pytest.mark.parametrize("name", ["existence", "relations", "charts"])
def test_yes_and_no_are_balanced(name, no_images):
    answers = Counter(i.answer for i in load(name, 500, 2) if set(i.choices) == {"Yes", "No"})
    assert 0.43 < answers["Yes"] / answers.total() < 0.57


@pytest.mark.slow_except("naming", "kind")
@pytest.mark.parametrize("name", SCENES)
def test_test_images_show_what_is_held_out_and_training_images_never_do(name, monkeypatch):
    test, train = drawn(monkeypatch, name, 40)[1], drawn(monkeypatch, name, 40, split="train")[1]
    for scene in train:
        assert not shows_held_out(scene.things, [p.style for p in scene.placed])
        assert scene.seed % 2 == 0
    for scene in test:
        assert scene.seed % 2 == 1
        if len(scene.things) > 1:
            assert shows_held_out(scene.things, [p.style for p in scene.placed])


def test_names_are_asked_in_both_styles_of_each_thing(monkeypatch):
    items, scenes = drawn(monkeypatch, "naming", 40)
    for i in range(0, 40, 2):
        assert scenes[i].things == scenes[i + 1].things
        assert scenes[i].placed[0].style != HELD_OUT_STYLE == scenes[i + 1].placed[0].style
        assert [item.group for item in items[i : i + 2]] == list(naming.STYLES)
        assert not held_out(scenes[i].things[0])
    assert {i.group for i in load("naming", 4, split="train")} == {"trained styles"}


def test_unseen_things_are_chosen_among_things_held_out(monkeypatch):
    items, scenes = drawn(monkeypatch, "unseen", 30)
    names = {re.sub("^(an?) ", "", choice.lower()) for item in items for choice in item.choices}
    assert all(held_out(by_name()[name]) for name in names)
    assert all(held_out(scene.things[0]) for scene in scenes)
    assert {len(item.choices) for item in items} == {20}
    assert {item.chance for item in items} == {0.05}


def test_kinds_are_asked_of_things_whose_kind_training_never_asks_for(monkeypatch):
    items, scenes = drawn(monkeypatch, "kind", 40)
    for item, scene in zip(items, scenes, strict=True):
        assert kind_asked(scene.things[0]) == (item.group == "asked in training")
    assert {i.group for i in load("kind", 4, split="train")} == {"asked in training"}


@pytest.mark.slow
def test_what_is_not_there_is_of_the_kind_of_what_is(monkeypatch):
    items, scenes = drawn(monkeypatch, "existence", 60)
    alike = 0
    for item, scene in zip(items, scenes, strict=True):
        asked = next(
            t
            for t in by_name().values()
            if re.search(rf"(?:there|show|see)(?: an?)? {t.name}(?: in |\?)", item.prompt)
        )
        assert (asked in scene.things) == (item.answer == "Yes")
        alike += any(asked.kind == thing.kind for thing in scene.things)
    assert alike == 60


def test_numbers_are_those_of_the_thing_asked_about(monkeypatch):
    items, scenes = drawn(monkeypatch, "counting", 80)
    for item, scene in zip(items, scenes, strict=True):
        first = scene.things[0]
        assert f" {first.plural} " in item.prompt
        assert item.choices.index(item.answer) + 1 == scene.things.count(first)
    assert set(Counter(item.answer for item in items)) == {"One", "Two", "Three", "Four"}


def test_relations_are_those_of_the_coordinates(monkeypatch):
    items, scenes = drawn(monkeypatch, "relations", 80)
    seen = set()
    for item, scene in zip(items, scenes, strict=True):
        words = next(
            w for w in ("to the left of", "to the right of", "above", "below") if f" {w} " in item.prompt
        )
        axis, sign = ("x" if "the " in words else "y"), (-1 if words in ("to the left of", "above") else 1)
        place = {p.thing.name: sign * getattr(p, axis) for p in scene.placed}
        before, after = item.prompt.rstrip("?").split(f" {words} the ")
        if item.group == "yes or no":
            first = re.sub("^(?:Is|Are) the ", "", before)
            assert item.answer == ("Yes" if place[first] > place[after] else "No")
        else:
            beyond = [name for name, at in place.items() if at > place[after]]
            assert len(beyond) == 1
            assert item.accepted[0] == beyond[0]
        seen.add((item.group, words))
    assert len(seen) == 8


def test_false_captions_have_the_same_words_or_another_thing_of_the_kind(monkeypatch):
    items, scenes = drawn(monkeypatch, "compositional", 40)
    for item, scene in zip(items, scenes, strict=True):
        words = [sorted(re.findall(r"\w+", choice.lower())) for choice in item.choices]
        assert item.answer == item.caption == item.choices[0] != item.choices[1]
        assert (words[0] == words[1]) == (item.group == "place")
        kept = [t for t in scene.things if re.search(rf"\b{t.name}\b", item.choices[1].lower())]
        assert len(kept) == (2 if item.group == "place" else 1)


def test_names_in_a_language_are_among_twenty_of_that_language(no_images):
    for item in load("languages", 40):
        language = {"German": "de", "French": "fr", "Spanish": "es", "Italian": "it"}[item.group]
        assert item.group in item.prompt
        known = {thing.name_in(language) for thing in by_name().values()}
        assert set(item.choices) <= known
        assert len(set(item.choices)) == 20


def test_no_name_in_a_language_is_of_what_the_thing_may_be_called_too(no_images, monkeypatch):
    dogs = [by_name()[name] for name in ("poodle", "dog")]
    monkeypatch.setattr(languages, "pool", lambda language: [*dogs, *trained_things()[50:69]])
    for item in load("languages", 80):
        language = {"German": "de", "French": "fr", "Spanish": "es", "Italian": "it"}[item.group]
        names = {thing.name_in(language) for thing in dogs}
        assert item.answer not in names or len(names & {*item.choices}) == 1


@pytest.mark.slow
def test_the_chance_of_a_caption_is_that_of_another_image_s(no_images):
    items = load("captions", 200)
    said = [item.answer for item in items]
    from_others = captions_suite.cider(said[1:] + said[:1], [[i.answer, *i.accepted] for i in items]) / 10
    own = captions_suite.cider(said, [[i.answer, *i.accepted] for i in items]) / 10
    assert np.mean(from_others) == pytest.approx(items[0].chance, abs=0.02)
    assert np.mean(own) > 0.4


def test_text_asks_the_questions_of_all_suites_with_answers(no_images):
    items = load("text", 80)
    for item in items:
        assert item.prompt.startswith(item.caption + " ")
        assert item.image is None
    asked = {group for name in text.ABOUT for group in {i.group for i in load(name, 12)}}
    assert {item.group for item in items} <= asked
    assert len(items) == 80


@pytest.mark.parametrize("name", ["naming", "charts", "digits", "reading"])
def test_images_are_drawn_at_one_size(name):
    (item,) = load(name, 1)
    assert item.image.size == (320, 320)
    assert len(np.unique(np.asarray(item.image))) > 3


def test_short_answers_are_asked_for_as_llava_is_asked(no_images):
    for name in ("naming", "languages"):
        (item,) = load(name, 1)
        said = "Answer the question using a single word or phrase."
        assert item.in_few_words().prompt.endswith(said) == (item.metric == "answer")
