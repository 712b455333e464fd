import pytest

from vlalign_utils.data.worlds import WORLDS, load_suite


@pytest.mark.parametrize("world", WORLDS)
def test_suites_are_named_as_they_are_registered(world):
    assert all(name == suite.name for name, suite in WORLDS[world].suites.items())


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_what_chapters_ask_for_is_there(world):
    assert all(name == concept.name for name, concept in world.concepts.items())
    assert set(world.lens) <= set(world.probed) <= set(world.concepts)
    assert set(world.probed[:2]) == set(world.lens)  # those of a quick run
    main, second, *_ = world.wordings
    assert main == "en"
    subjects = {name: next(of.draw(1, 0, "train")) for name, of in world.concepts.items()}
    texts = {name: world.concepts[name].captions(subject) for name, subject in subjects.items()}
    assert all(main in said for said in texts.values())
    assert any(second in said for said in texts.values())
    (pair,) = world.caption_pairs(1, 0, "test")
    assert set(world.wordings) <= set(pair.caption)
    assert pair.ask


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_minimal_pairs_ask_one_question_about_two_images(world):
    for pair in world.minimal_pairs(2, 0, "test"):
        assert pair.item.prompt == pair.other.prompt
        assert pair.item.answer != pair.other.answer
        width, height = pair.item.image.size
        assert pair.other.image.size == (width, height)
        assert pair.covered.shape == (height, width)
        assert 0 <= pair.covered.min() < 0.01 < 0.99 < pair.covered.max() <= 1


def test_unknown_worlds_unknown_suites_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match="no world 'moon'; there are drawn, things"):
        load_suite("digits", 5, world="moon")
    with pytest.raises(ValueError, match="no suite 'colours' in the world 'drawn'; there are attributes"):
        load_suite("colours", 5)
    with pytest.raises(ValueError, match="no suite 'attributes' in the world 'things'; there are"):
        load_suite("attributes", 5, world="things")
    with pytest.raises(ValueError, match="n is 0"):
        load_suite("digits", 0)
