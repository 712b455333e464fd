"""Concepts of real things: balanced, named by their captions, and true of their images."""

import numpy as np
import pytest
from blank_things import blank_things
from concept_checks import check_balance, check_repeats

from vlalign_utils.data.concepts import other_words, same_caption
from vlalign_utils.data.scenes import DIGITS
from vlalign_utils.data.things import concepts
from vlalign_utils.data.things.concepts import COMPANIONS, KINDS, NAMES, SIGNS, of_kind
from vlalign_utils.data.things.handwriting import draw_digit
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.sheets import STYLES
from vlalign_utils.data.things.splits import TRAINED_STYLES, held_out, shows_held_out
from vlalign_utils.data.things.stems import words_of
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.table import by_name
from vlalign_utils.data.things.written_signs import WORDS
from vlalign_utils.data.worlds import WORLDS

WORLD = WORLDS["things"]
CONCEPTS = WORLD.concepts
N = 60
SHOWN = ("name", "kind", "place", "number")  # in scenes of things
pytestmark = pytest.mark.xdist_group("things' concepts")  # which share what they draw


@pytest.fixture(scope="module")
def drawn():
    """Items without their images, which one test alone looks at."""
    with pytest.MonkeyPatch.context() as patch:
        blank_things(patch)
        return {concept: WORLD.concept_items(concept, N, 5) for concept in CONCEPTS}


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_value_is_as_frequent_as_the_others(concept, drawn):
    check_balance(WORLD, concept, drawn[concept], N)


@pytest.mark.slow
@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_same_arguments_give_the_same_items(concept):
    check_repeats(WORLD, concept, N, about.image_of)


@pytest.mark.parametrize("concept", [c for c, about in CONCEPTS.items() if about.said])
def test_a_caption_names_its_own_value_and_no_other(concept, drawn):
    values = [set(words) for words in WORLD.concept_words(concept, drawn[concept])]
    known = {word for value in values for word in value}
    for item, own in zip(drawn[concept], values, strict=True):
        said = item.caption["en"].lower().strip(".").replace('"', "").split()
        assert set(said) & known == own
        other = item.caption.get("described", "").lower()
        assert not own & set(words_of(other))


def test_a_kind_is_that_of_the_table_and_no_caption_says_it(drawn):
    for item in drawn["kind"]:
        (thing,) = item.scene.things
        assert thing.kind == KINDS[item.labels["kind"]]
        assert not any(kind in item.caption["en"].lower() for kind in KINDS)
    assert all(len(of_kind(kind)) >= 10 for kind in KINDS)


def test_a_probe_for_kinds_is_tested_on_other_things(drawn):
    things = [item.scene.things[0].index for item in drawn["kind"]]
    groups = same_caption(drawn["kind"])
    assert len(set(zip(groups, things, strict=True))) == len(set(groups)) == len(set(things))


def test_labels_are_what_the_image_shows(drawn):
    for item in drawn["name"]:
        names = {thing.name for thing in item.scene.things}
        assert names & set(NAMES) == {NAMES[item.labels["name"]]}
        assert len(names & set(COMPANIONS)) == 1
    for item in drawn["place"]:
        (placed,) = item.scene.placed
        row, column = CONCEPTS["place"].values[item.labels["place"]].split()
        assert (placed.y < 0.5) == (row == "top")
        assert (placed.x < 0.5) == (column == "left")
        assert abs(placed.x - 0.5) > 0.1 < abs(placed.y - 0.5)
    for item in drawn["number"]:
        assert len(item.scene.placed) == item.labels["number"] + 1
        assert len(set(item.scene.things)) == 1
    assert all(item.scene.value == item.labels["digit"] for item in drawn["digit"])
    assert all(item.scene.word == SIGNS[item.labels["word"]] for item in drawn["word"])


def test_what_is_said_of_handwriting_is_true(drawn):
    for item in drawn["digit"]:
        pixels, (left, _, right, _) = draw_digit(item.scene, about.SIDE)
        assert ("chalk" in item.caption["en"]) == (np.median(pixels) < 128)
        assert ("large" in item.caption["en"]) == (right - left > 0.675)
        assert item.caption["described"].startswith(DIGITS[item.scene.value].capitalize())
        assert item.scene.split == "test"  # no training image shows it


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("concept", SHOWN)
def test_scenes_keep_to_their_split(concept, split):
    styles = TRAINED_STYLES if split == "train" else STYLES
    for scene in CONCEPTS[concept].draw(40, 3, split):
        used = [placed.style for placed in scene.placed]
        assert scene.split == split
        assert set(used) <= set(styles)
        if len(scene.placed) > 1:
            assert shows_held_out(scene.things, used) == (split == "test")
        else:
            assert not shows_held_out(scene.things, used)


def test_familiar_things_are_trained_and_told_apart():
    shown = [by_name()[name] for name in (*NAMES, *COMPANIONS)]
    assert not any(held_out(thing) for thing in shown)
    assert all(thing.number == "one" and " " not in thing.name for thing in shown)
    assert not any(overlap(a, b) for i, a in enumerate(shown) for b in shown[:i])
    assert set(SIGNS) <= set(WORDS)


def test_control_types_are_what_decides_the_concept(drawn):
    for concept, size in (("name", 2), ("kind", 1), ("number", 1), ("place", 1)):
        things = [
            " ".join(sorted({t.name for t in item.scene.things})) if size == 2 else item.scene.things[0].name
            for item in drawn[concept]
        ]
        types = WORLD.control_types(concept, drawn[concept])
        assert len(set(zip(types, things, strict=True))) == len(set(types)) == len(set(things))
    # Memory can serve a control only where a type comes with several captions.
    for concept in ("name", "place", "number", "digit"):
        types = WORLD.control_types(concept, drawn[concept])
        assert len(set(same_caption(drawn[concept]))) > len(set(types))


def test_every_concept_of_the_lenses_has_control_words(drawn):
    for concept in WORLD.lens:
        own = WORLD.concept_words(concept, drawn[concept])
        assert all(len(words) == 1 for words in own)
        assert all(a != b for a, b in zip(own, other_words(own, 1), strict=True))


def test_an_unknown_concept_is_refused():
    with pytest.raises(ValueError, match="no concept 'colour' in the world 'things'; there are name, kind"):
        WORLD.concept_items("colour", 10)


def test_numbers_in_other_words_are_as_many():
    assert len(concepts.OTHERWISE) == len(concepts.COUNTS) == len(CONCEPTS["number"].values)
