import pytest

from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.table import by_name


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("car", "taxi", True),  # a kind of it
        ("dog", "poodle", True),  # a poodle dog
        ("cap", "graduation cap", True),  # the noun that a name ends in
        ("meat", "steak", True),
        ("dog", "hot dog", True),
        ("dog", "owl", False),
        ("taxi", "ambulance", False),  # two kinds of car
        ("owl", "owl", True),
    ],
)
def test_things_overlap_where_one_may_be_called_what_the_other_is(one, other, expected):
    a, b = by_name()[one], by_name()[other]
    assert overlap(a, b) is overlap(b, a) is expected
