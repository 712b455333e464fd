import numpy as np
import pytest
import torch
from tiny_models import build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.analysis.word_bags import bag_of_words
from vlalign_utils.evidence.intervals import rng

TEXTS = ["what colour is the red circle ?", "red circle", "circle red", "what is the blue square ?"]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def test_a_bag_is_the_mean_of_the_vectors_of_a_texts_tokens(vlm: VLM) -> None:
    found = bag_of_words(vlm, TEXTS, seed=3, width=16)
    for row, text in enumerate(TEXTS):
        ids = vlm.prepare([text])["input_ids"][0].tolist()
        expected = np.mean([rng(3, f"word {token}").standard_normal(16) for token in ids], axis=0)
        assert found[row].numpy() == pytest.approx(expected)


def test_order_does_not_matter_and_words_do(vlm: VLM) -> None:
    _, one, other, third = bag_of_words(vlm, TEXTS)
    assert torch.allclose(one, other)
    assert not torch.allclose(one, third)
    again = bag_of_words(vlm, TEXTS[1:2])
    assert torch.allclose(again[0], one)  # whatever the other texts are
    assert not torch.allclose(bag_of_words(vlm, TEXTS[1:2], seed=1)[0], one)
