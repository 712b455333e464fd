from collections import Counter

import numpy as np
import pytest

from vlalign_utils.data.things import splits
from vlalign_utils.data.things.table import by_name
from vlalign_utils.data.things.words import accepted_names
from vlalign_utils.zoo import naming_data, things_data
from vlalign_utils.zoo.things_data import ASKED, CAPTIONED, captioned, questioned

SIDE = 96


def test_shares_are_of_a_whole():
    for shares in (CAPTIONED, ASKED):
        assert sum(shares.values()) == pytest.approx(1)
        assert set(shares) <= set(things_data.KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("make", [captioned, questioned])
def test_a_step_gets_the_same_examples_and_another_seed_others(make):
    once, again, other = make(6, 0, 3, SIDE), make(6, 0, 3, SIDE), make(6, 1, 3, SIDE)
    assert [e.questions for e in once] == [e.questions for e in again] != [e.questions for e in other]
    for one, same in zip(once, again, strict=True):
        assert (one.image is None) == (same.image is None)
        if one.image is not None:
            assert np.array_equal(np.asarray(one.image), np.asarray(same.image))


@pytest.mark.slow
def test_no_text_of_training_names_what_is_held_out():
    """Words in prompts and answers, also of things that are not there."""
    secret = {name.lower() for thing in splits.held_out_things() for name in accepted_names(thing)}
    known = {name.lower() for thing in splits.trained_things() for name in accepted_names(thing)}
    said = " | ".join(
        f"{q.prompt} {q.answer}".lower()
        for step in range(40)
        for example in questioned(16, 0, step, SIDE)
        for q in example.questions
    )
    for mark in ".,?:":
        said = said.replace(mark, "")
    words = f" {said} "
    hits = {name for name in secret - known if f" {name} " in words}
    # a name may stand within a longer one, as in "tennis ball"
    assert {name for name in hits if not any(name in longer.split() for longer in known)} == set()


@pytest.mark.slow
def test_questions_cover_what_is_evaluated():
    topics = Counter(
        q.topic for step in range(30) for e in questioned(16, 0, step, SIDE) for q in e.questions
    )
    wanted = "name exists number place beside related either fits kind caption language read digit chart"
    assert set(wanted.split()) <= set(topics)


def test_images_of_stage_vision_name_training_things_in_their_boxes():
    for seed in range(12):
        image, regions = naming_data.draw(np.random.default_rng(seed), SIDE)
        assert image.shape == (SIDE, SIDE, 3)
        assert regions
        for region in regions:
            assert 0 <= region.word < naming_data.sizes()[region.axis]
    assert naming_data.sizes()[naming_data.NAMES] == len(splits.trained_things()) < len(by_name())
