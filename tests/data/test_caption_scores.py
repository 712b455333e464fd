import math
from collections import Counter

import numpy as np
import pytest

from vlalign_utils.data.caption_scores import agreement, cider
from vlalign_utils.data.kinds import KINDS


def test_the_true_description_agrees_in_both_languages_and_any_order():
    say = KINDS["scenes"].say
    for scene in KINDS["scenes"].draw(40, 0, "test"):
        truth = say(scene, "en")
        for said in (truth, say(scene, "it"), say(scene, "it", np.random.default_rng(1))):
            assert agreement(said, truth) == (1, 1, 1, 1)


def test_each_attribute_counts_for_itself():
    truth = "small red star top left, large blue ring bottom right."
    found = agreement("small red ring top left, small blue ring bottom right.", truth)
    assert found == (0.5, 1, 0.5, 1)
    assert found.mean == 0.75


def test_missing_things_and_things_too_many_are_wrong():
    truth = "small red star top left, large blue ring bottom right."
    assert agreement("small red star top left.", truth).mean == 0.5
    assert agreement(f"{truth[:-1]}, small pink heart top right.", truth).mean == pytest.approx(2 / 3)
    assert agreement("", truth).mean == 0
    assert agreement("i see nothing at all", truth).mean == 0


def naive_cider(said, truth):
    """CIDEr-D as Vedantam et al. define it, written out."""

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for text, references in zip(said, truth, strict=True):
        per_n = []
        for n in range(1, 5):
            seen = [set().union(*(grams(r, n) for r in refs)) for refs in truth]

            def weigh(counts, seen=seen):
                return {
                    g: c * (math.log(len(truth)) - math.log(max(1, sum(g in s for s in seen))))
                    for g, c in counts.items()
                }

            values = []
            for reference in references:
                a, b = weigh(grams(text, n)), weigh(grams(reference, n))
                norm = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
                dot = sum(min(a[g], b.get(g, 0)) * b.get(g, 0) for g in a)
                gap = len(text.split()) - len(reference.split())
                values.append((dot / norm if norm else 0) * math.exp(-(gap**2) / (2 * 6.0**2)))
            per_n.append(np.mean(values))
        scores.append(10 * np.mean(per_n))
    return scores


def test_cider_is_that_of_its_definition():
    truth = [["small red star top left"], ["large blue ring"], ["small pink heart", "pink heart small"]]
    said = ["small red star top right", "large blue ring", "large pink heart here"]
    np.testing.assert_allclose(cider(said, truth), naive_cider(said, truth), rtol=1e-3)


def test_texts_without_references_are_refused():
    with pytest.raises(ValueError, match="2 texts but references for 1"):
        cider(["a", "b"], [["a"]])


def test_an_own_caption_agrees_with_itself():
    for own in ("a dog sleeps on the grass", "a red dog", "small red star", "", "a dog, a cat"):
        assert agreement(own, own) == (1, 1, 1, 1)
    assert agreement("a dog sleeps", "a cat sleeps").mean == pytest.approx(2 / 3)
    assert agreement("nothing", "a cat sleeps").mean == 0
    own = ["a dog sleeps on the grass", "two people ride a bicycle downhill"]
    assert cider(own, [[text] for text in own]).tolist() == pytest.approx([10, 10])


def test_cider_of_words_without_weight_is_refused():
    with pytest.raises(ValueError, match="item 0: every word of its references is in those of all"):
        cider(["a dog sleeps"], [["a dog sleeps"]])
