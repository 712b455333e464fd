import numpy as np
import pytest

from vlalign_utils import VLM, collect, load_vlm
from vlalign_utils.analysis.neighbours import mutual_knn
from vlalign_utils.analysis.text_overlap import find_phase, text_overlap
from vlalign_utils.analysis.word_bags import bag_of_words
from vlalign_utils.data.pairs import caption_pairs
from vlalign_utils.data.worlds import WORLDS


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_vlm("zoo/llava", "base")


def texts(n: int = 24) -> dict[str, list[str]]:
    said = [pair.caption["en"] for pair in caption_pairs(n, 0, "test")]
    return {"said": said, "turned": [" ".join(reversed(one.split())) for one in said]}


def test_each_point_is_the_overlap_of_its_states(vlm: VLM) -> None:
    found = text_overlap(vlm, texts(), k=3, seed=2)
    one, other = (collect(vlm, own, None, ("text",))["text"] for own in texts().values())
    for point in range(vlm.n_layers + 1):
        expected = mutual_knn(one[point], other[point], 3)
        assert found.same_depth["turned"][:, point] == pytest.approx(expected.numpy())


def test_the_same_words_in_another_order_are_one_bag(vlm: VLM) -> None:
    found = text_overlap(vlm, texts(), k=3)
    assert found.bags["turned"] == pytest.approx(1)
    assert (found.excess() <= 0).all()
    bags = bag_of_words(vlm, texts()["said"])
    assert found.bags["turned"] == pytest.approx(mutual_knn(bags, bags, 3).numpy())


def test_the_excess_is_the_mean_over_the_kinds_that_are_named(vlm: VLM) -> None:
    three = texts() | {"again": texts()["said"]}
    found = text_overlap(vlm, three, k=3)
    both = [found.excess([name]) for name in ("turned", "again")]
    assert found.excess() == pytest.approx(np.mean(both, axis=0))


def test_one_kind_of_text_is_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="1 kind of text: give the main texts and the same in other words"):
        text_overlap(vlm, {"said": ["red", "blue"]})


def test_a_model_of_word_for_word_translations_has_no_phase(vlm: VLM) -> None:
    assert find_phase(vlm, WORLDS["drawn"], 40, k=3).phase is None
