import pytest

from vlalign_utils.data.worlds import WORLDS, load_suite


@pytest.mark.parametrize("world", WORLDS)
def test_suites_are_named_as_they_are_registered(world):
    assert all(name == suite.name for name, suite in WORLDS[world].suites.items())


def test_unknown_worlds_unknown_suites_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match="no world 'moon'; there are drawn, things"):
        load_suite("digits", 5, world="moon")
    with pytest.raises(ValueError, match="no suite 'colours' in the world 'drawn'; there are attributes"):
        load_suite("colours", 5)
    with pytest.raises(ValueError, match="no suite 'attributes' in the world 'things'; there are"):
        load_suite("attributes", 5, world="things")
    with pytest.raises(ValueError, match="n is 0"):
        load_suite("digits", 0)
