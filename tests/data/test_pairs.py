import numpy as np
import pytest

from vlalign_utils.data import pairs
from vlalign_utils.data.pairs import CONCEPTS, caption_pairs
from vlalign_utils.data.render import render
from vlalign_utils.data.scenes import scenes


def test_pairs_are_reproducible_with_distinct_captions():
    first, again = caption_pairs(60, 4), caption_pairs(60, 4)
    assert [p.caption for p in first] == [p.caption for p in again]
    for language in first[0].caption:  # no two of the same letters: they could be the same pieces
        assert len({"".join(sorted(p.caption[language])) for p in first}) == 60
    assert np.array_equal(np.asarray(first[7].image), render(first[7].scene))


def test_labels_speak_of_the_first_thing_named():
    for pair in caption_pairs(30, 1):
        first = pair.caption["en"].rstrip(".").split(", ")[0].split()
        for concept in ("form", "colour", "row", "column"):
            assert CONCEPTS[concept][pair.labels[concept]] in first
        assert pair.labels["count"] == pair.caption["en"].count(",")


def test_asking_for_more_than_there_are_is_refused(monkeypatch):
    (scene,) = scenes(1, 0, "test")
    monkeypatch.setattr(pairs, "scenes", lambda n, *world: [scene] * n)
    with pytest.raises(ValueError, match="only 1 distinct scenes of 1 to 3 things were found; asked for 2"):
        caption_pairs(2)
