import pytest

from vlalign_utils.data.things.stems import shares_stem, words_of


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("cherries", "cherry"),
        ("Knives", "knife"),
        ("surfer", "surf"),
        ("football", "ball"),
        ("watermelon", "water"),
        ("boxes", "box"),
        ("astronomy", "astronaut"),
        ("ant", "ants"),
    ],
)
def test_words_of_one_stem_are_found(a, b):
    assert shares_stem(a, b)
    assert shares_stem(b, a)


@pytest.mark.parametrize(
    ("a", "b"), [("cat", "cattle"), ("ant", "giant"), ("dog", "canine"), ("bus", "bush")]
)
def test_short_words_inside_others_are_not_stems(a, b):
    assert not shares_stem(a, b)


def test_words_are_taken_without_punctuation_and_function_words():
    assert words_of("The cat, a well-known friend of the house.") == [
        "cat",
        "well",
        "known",
        "friend",
        "house",
    ]
