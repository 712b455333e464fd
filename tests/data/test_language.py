import re

import numpy as np
import pytest

from vlalign_utils.data.language import (
    ITALIAN,
    LANGUAGES,
    ask_count,
    ask_digit,
    ask_exists,
    ask_fact,
    ask_thing,
    attribute,
    caption,
    vocabulary,
    word,
)
from vlalign_utils.data.scenes import KIND_OF, OWNER_OF, Scene, Thing, held_out, scenes

SCENE = Scene(
    (Thing("circle", "red", "small", "top", "left"), Thing("seven", "blue", "large", "bottom", "right")),
    0,
    "test",
)


def test_captions_in_both_languages():
    assert caption(SCENE, "en") == "small red circle top left, large blue seven bottom right."
    assert caption(SCENE, "it") == "cerchio rosso piccolo alto sinistra, sette blu grande basso destra."


def test_a_random_caption_says_the_same_with_one_order_for_all_things():
    orders = set()
    for seed in range(20):
        text = caption(SCENE, "en", ("colour", "form"), np.random.default_rng(seed))
        parts = text.rstrip(".").split(", ")
        assert sorted(sorted(p.split()) for p in parts) == [["blue", "seven"], ["circle", "red"]]
        assert len({p.split()[0] in ("red", "blue") for p in parts}) == 1
        orders.add(text)
    assert len(orders) == 4


def _find(scene, text, language):
    """The thing a question names, found from the words alone."""
    words = re.findall(r"\w+", text)
    named = [
        thing
        for thing in scene.things
        if any(word(getattr(thing, a), language) in words for a in ("form", "colour"))
        or all(w in words for w in word(f"{thing.row} {thing.column}", language).split())
    ]
    assert len(named) == 1, text
    return named[0]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("topic", ["colour", "form", "size", "place", "kind", "owner"])
def test_answers_are_true_of_the_thing_the_question_names(language, topic):
    rng = np.random.default_rng(0)
    for scene in scenes(60, 1, "test"):
        question = ask_thing(scene, topic, language, rng)
        thing = _find(scene, question.text, language)
        fact = {"kind": KIND_OF[thing.form], "owner": OWNER_OF[thing.colour]}
        truth = fact.get(topic) or attribute(thing, topic)
        assert question.answer == word(truth, language)
        assert question.answer in question.choices
        decides = {"kind": thing.form, "owner": thing.colour}.get(topic, truth)
        assert not set(word(decides, language).split()) & set(re.findall(r"\w+", question.text))


def test_existence_is_balanced_and_true():
    rng = np.random.default_rng(0)
    answers = []
    for scene in scenes(1000, 2, "test"):
        question = ask_exists(scene, "en", rng)
        colour, form = re.fullmatch(r"is there a (\w+) (\w+)\?", question.text).groups()
        assert (question.answer == "yes") == ((form, colour) in {(t.form, t.colour) for t in scene.things})
        answers.append(question.answer)
    assert abs(answers.count("yes") / 1000 - 0.5) < 0.05


def test_training_scenes_never_deny_a_held_out_combination():
    rng = np.random.default_rng(0)
    for scene in scenes(1000, 2, "train"):
        colour, form = re.fullmatch(r"is there a (\w+) (\w+)\?", ask_exists(scene, "en", rng).text).groups()
        assert not held_out(form, colour)


def test_counts_are_true():
    rng = np.random.default_rng(0)
    for scene in scenes(200, 3, "test"):
        question = ask_count(scene, "en", rng)
        sizes = [thing.size for thing in scene.things]
        asked = re.fullmatch(r"how many (small |large )?things\?", question.text).group(1)
        count = sizes.count(asked.strip()) if asked else len(sizes)
        assert question.answer == ["zero", "one", "two", "three"][count]


def test_facts_and_digits():
    rng = np.random.default_rng(0)
    texts = {ask_fact("en", rng).text for _ in range(300)}
    assert {"what kind is a circle?", "who owns a red thing?"} <= texts
    assert ask_digit(3, "it").answer == "tre"


def test_the_two_languages_translate_word_for_word():
    assert len(set(ITALIAN.values())) == len(ITALIAN)
    content, grammar = vocabulary()
    assert not set(content) & set(grammar)
    assert {"red", "rosso", "circle", "cerchio"} <= set(content)
    assert {"what", "che", "left", "sinistra"} <= set(grammar)
