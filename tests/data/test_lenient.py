import pytest

from vlalign_utils.data.lenient import is_right, named, normalised

NAMES = ("Dog", "Cat", "Hot dog", "Ice cube", "T-shirt", "Owl")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Dog", True),
        ("dog.", True),
        ("A dog", True),
        ("the DOG!", True),
        ("It's a dog.", True),
        ("This is a dog in the grass.", True),
        ("puppy", True),
        ("A puppy on a lawn", True),
        ("I see a dog and a cat", False),
        ("A hot dog", False),
        ("It is not a dog.", False),
        ("doghouse", False),
        ("cat", False),
        ("", False),
    ],
)
def test_names_are_right_in_any_spelling_and_in_sentences_that_name_no_other(said, expected):
    assert is_right(said, "Dog", ("puppy",), NAMES) is expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Yes", True),
        ("yes.", True),
        ("Yes, there is a dog, but no cat.", True),
        ("No", False),
        ("There is a dog.", False),
        ("Yesterday", False),
        ("", False),
    ],
)
def test_yes_and_no_are_what_an_answer_begins_with(said, expected):
    assert is_right(said, "Yes", choices=("Yes", "No")) is expected


def test_numbers_are_right_as_words_and_as_digits():
    for said in ("3", "three", "Three.", "There are three dogs.", "There are 3"):
        assert is_right(said, "3", choices=("1", "2", "3", "4"))
        assert is_right(said, "three", choices=("one", "two", "three"))
    assert not is_right("There are 3 or 4", "3", choices=("1", "2", "3", "4"))
    assert not is_right("30", "3", choices=("1", "2", "3", "4"))


def test_a_number_that_is_no_choice_is_wrong_beside_the_right_one():
    for said in ("two hundred cats", "Five or two", "2 or 5 cats", "two dozen", "twelve", "2, 5"):
        assert not is_right(said, "Two", choices=("One", "Two", "Three", "Four"))
    assert is_right("I can see two cats.", "Two", choices=("One", "Two", "Three", "Four"))


@pytest.mark.parametrize(
    "said",
    ["I don't see a dog.", "It can’t be a dog", "I cannot see a dog", "An image without a dog", "Not a dog"],
)
def test_a_negated_name_is_no_answer(said):
    assert not is_right(said, "A dog", choices=("A dog", "A cat"))


def test_what_the_question_names_may_be_repeated():
    asked = "What is left of the cat?"
    assert is_right("The dog is left of the cat.", "Dog", choices=NAMES, prompt=asked)
    assert not is_right("The cat", "Dog", choices=NAMES, prompt=asked)
    assert not is_right("The dog is left of the owl.", "Dog", choices=NAMES, prompt=asked)
    either = "Which is taller, May or June?"
    assert not is_right("May or June", "May", choices=("May", "June"), prompt=either)
    assert is_right("May is taller", "May", choices=("May", "June"), prompt=either)


def test_an_accepted_answer_is_right_although_it_is_another_choice():
    assert is_right("food", "Fruit", ("food",), ("Fruit", "Food", "Tool"))
    assert is_right("No", "No", choices=("No", "Exit"))  # a word on a sign


def test_names_are_whole_words_and_the_longest_that_fit():
    assert named("blue ice cube and t shirt", map(normalised, NAMES)) == {"ice cube", "t shirt"}
    assert named("hot dog", ["dog", "hot dog"]) == {"hot dog"}
    assert named("", ["dog", ""]) == set()


def test_normalisation_keeps_letters_of_other_languages():
    assert normalised("Der Löwe, El Ratón") == "der löwe el ratón"
