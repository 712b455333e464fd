import numpy as np
import pytest

from vlalign_utils.data.things.descriptions import wordings
from vlalign_utils.data.things.scenes import place
from vlalign_utils.data.things.table import by_name


def scene(names, arrangement):
    return place(np.random.default_rng(0), "test", [by_name()[name] for name in names], arrangement)


@pytest.mark.parametrize(
    ("names", "arrangement", "expected"),
    [
        (("owl",), "alone", ("An owl.", "The image shows an owl.", "There is an owl.")),
        (("jeans",), "alone", ("Jeans.", "The image shows jeans.", "There are jeans.")),
        (
            ("rat", "rice"),
            "column",
            (
                "A rat at the top and rice at the bottom.",
                "The image shows a rat at the top and rice at the bottom.",
                "There is a rat above rice.",
                "A rat and rice from top to bottom.",
            ),
        ),
        (
            ("owl", "rat", "dog"),
            "row",
            (
                "An owl on the left, a rat in the middle and a dog on the right.",
                "The image shows an owl on the left, a rat in the middle and a dog on the right.",
                "An owl, a rat and a dog from left to right.",
            ),
        ),
    ],
)
def test_a_scene_is_described_in_several_true_wordings(names, arrangement, expected):
    assert wordings(scene(names, arrangement)) == expected
