from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from blank_pictures import blank
from concept_checks import check_balance, check_repeats

from vlalign_utils.data.concepts import other_words, same_caption
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.language import LANGUAGES
from vlalign_utils.data.scenes import DIGITS, KIND_OF, OWNER_OF
from vlalign_utils.data.scenes import KINDS as FACTS
from vlalign_utils.data.signs import WORDS
from vlalign_utils.data.worlds import WORLDS

WORLD = WORLDS["drawn"]
CONCEPTS = WORLD.concepts
KIND_OF_IMAGE = {concept: "signs" if concept == "word" else "scenes" for concept in CONCEPTS}
N = 110
FACT = ("kind", "owner")
pytestmark = pytest.mark.xdist_group("concepts")  # which share what they draw


@pytest.fixture(scope="module")
def drawn():
    """Items without their pictures, which one test alone looks at."""
    with pytest.MonkeyPatch.context() as patch:
        blank(patch)
        return {concept: WORLD.concept_items(concept, N, 5) for concept in CONCEPTS}


@pytest.mark.slow
@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_value_is_as_frequent_as_the_others(concept, drawn):
    check_balance(WORLD, concept, drawn[concept], N)


@pytest.mark.slow_except("word")
@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_same_arguments_give_the_same_items(concept):
    check_repeats(WORLD, concept, N, KINDS[KIND_OF_IMAGE[concept]].render)


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c not in FACT])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_names_its_own_value_and_no_other(concept, language, drawn):
    values = [set(w) for w in WORLD.concept_words(concept, drawn[concept], (language,))]
    known = {word for value in values for word in value}
    for item, own in zip(drawn[concept], values, strict=True):
        said = set(item.caption[language].replace(",", "").strip(".").split())
        if concept == "word":  # the ink may be a word of signs too
            assert item.caption[language].startswith(f"{WORDS[item.labels['word']]} in ")
        else:
            assert said & known == own


@pytest.mark.parametrize("concept", FACT)
def test_facts_are_those_of_the_tables_and_never_said(concept, drawn):
    for item in drawn[concept]:
        (thing,) = item.scene.things
        fact = KIND_OF[thing.form] if concept == "kind" else OWNER_OF[thing.colour]
        assert CONCEPTS[concept].values[item.labels[concept]] == fact
        for own in WORLD.concept_words(concept, [item], LANGUAGES):
            assert not any(word in item.caption[language] for word in own for language in LANGUAGES)
    assert CONCEPTS["kind"].values == FACTS


def test_the_number_of_things_is_named_once_and_never_shown_by_a_caption_s_length(drawn):
    for item in drawn["count"]:
        count = item.labels["count"] + 1
        assert len(item.scene.things) == count
        assert item.caption["en"].startswith(f"{DIGITS[count]} things, ")
        for caption in item.caption.values():
            assert caption.count(",") == 1
            assert len(caption.split()) == 7


def test_labels_are_what_the_picture_was_drawn_from(drawn):
    for concept in ("form", "colour", "size", "row", "column"):
        for item in drawn[concept]:
            value = CONCEPTS[concept].values[item.labels[concept]]
            assert getattr(item.scene.things[0], concept) == value
    assert all(item.scene.things[0].form == DIGITS[item.labels["digit"]] for item in drawn["digit"])
    for item in drawn["position"]:
        thing = item.scene.things[0]
        assert CONCEPTS["position"].values[item.labels["position"]] == f"{thing.row} {thing.column}"
    assert all(item.scene.text == WORDS[item.labels["word"]] for item in drawn["word"])


@pytest.mark.slow
def test_captions_are_repeated_only_where_the_world_has_no_more():
    few = [item.caption["en"] for item in WORLD.concept_items("digit", 100, 0)]
    assert len(set(few)) == 100
    many = Counter(item.caption["en"] for item in WORLD.concept_items("digit", 600, 0))
    assert len(many) == 280  # 10 digits, 7 colours each, 4 places: all there are
    groups = same_caption(WORLD.concept_items("digit", 600, 0))
    assert len(np.unique(groups)) == 280


def test_control_types_are_what_decides_the_concept(drawn):
    forms = np.array([item.scene.things[0].form for item in drawn["kind"]])
    types = WORLD.control_types("kind", drawn["kind"])
    assert all((types[i] == types[j]) == (forms[i] == forms[j]) for i, j in pairwise(range(N)))
    assert len(set(WORLD.control_types("owner", drawn["owner"]))) == 8
    assert len(set(WORLD.control_types("form", drawn["form"]))) > 60


def test_the_control_words_are_another_item_s_and_share_none(drawn):
    for concept in CONCEPTS:
        own = WORLD.concept_words(concept, drawn[concept], LANGUAGES)
        others = other_words(own, 1)
        assert set(others) <= set(own)
        assert all(not set(a) & set(b) for a, b in zip(own, others, strict=True))
        assert others == other_words(own, 1)
        assert len(set(others)) > len(set(own)) / 2


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no concept 'shape' in the world 'drawn'; there are form"):
        WORLD.concept_items("shape", 10)
    with pytest.raises(ValueError, match="there is no control"):
        other_words([("red",), ("red",)])


def test_too_few_pictures_of_a_value_are_refused(monkeypatch):
    monkeypatch.setattr("vlalign_utils.data.concepts.POOL", 1)
    monkeypatch.setattr("vlalign_utils.data.concepts.SPARE", 0)
    with pytest.raises(ValueError, match="cannot be balanced: too few pictures of"):
        WORLD.concept_items("digit", 40)
