import numpy as np
import pytest
import torch
from tiny_models import build, each_family, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.analysis.logit_lens import first_pieces, lens_scores, logit_lens, read_off
from vlalign_utils.data.concepts import other_words
from vlalign_utils.data.language import describe
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.data.worlds import WORLDS

NAMES = [("red",), ("green", "blue"), ("circle",), ("red",), ("square",)]


def naive(tokens: torch.Tensor, pieces: list[int]) -> tuple[float, float, float]:
    """Probability, rank and share of top pieces of one item, token by token from sorted probabilities."""
    scores = []
    for logits in tokens:
        probs = logits.double().softmax(-1)
        order = probs.argsort(descending=True).tolist()
        scores.append(
            (
                sum(probs[i].item() for i in pieces),
                min(order.index(i) for i in pieces),
                order[0] in pieces,
            )
        )
    return tuple(np.mean(scores, axis=0))


def test_scores_are_those_of_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 7, 9, generator=generator)
    where = torch.rand(4, 7, generator=generator) < 0.6
    pieces = [[3], [0, 8], [1, 2, 5], [6]]
    scores = lens_scores(read_off(logits, where), pieces)
    for i in range(4):
        expected = naive(logits[i, where[i]], pieces[i])
        assert [part[i] for part in scores] == pytest.approx(expected, rel=1e-5)
    assert (scores.anywhere == (scores.share > 0)).all()
    assert 0 < scores.anywhere.mean() < 1


def test_what_cannot_be_scored_is_refused():
    logits, where = torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    none = where.clone()
    none[1] = False
    for mask, pieces in ((where, [[1]]), (where, [[1], []]), (none, [[1], [2]])):
        with pytest.raises(ValueError, match="at least one masked token and at least one piece"):
            lens_scores(read_off(logits, mask), pieces)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@pytest.mark.slow_except("32")
@pytest.mark.parametrize("batch_size", [2, 32])
def test_the_lens_is_the_model_s_own_norm_and_head(vlm, batch_size):
    pairs = WORLDS["drawn"].concept_items("colour", len(NAMES), 0)
    found = logit_lens(vlm, pairs, NAMES, batch_size=batch_size, seed=3)
    model = vlm.model
    for side, words in ((found.own, NAMES), (found.control, other_words(NAMES, 3))):
        assert side.probability.shape == (vlm.n_layers + 1, len(pairs))
        for i, pair in enumerate(pairs):
            inputs = vlm.prepare([describe("en")], [pair.image])
            image = inputs["input_ids"][0] == model.config.image_token_id
            ids = [vlm.tokenizer.convert_tokens_to_ids(word) for word in words[i]]
            for layer, stream in enumerate(vlm.record(**inputs).resid):
                with torch.no_grad():
                    logits = model.lm_head(model.model.language_model.norm(stream[0, image]))
                expected = naive(logits, ids)
                assert [part[layer, i] for part in side] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_another_group_of_tokens_can_be_read(vlm):
    pairs = WORLDS["drawn"].concept_items("colour", 3, 0)
    last = logit_lens(vlm, pairs, NAMES[:3], group="last")
    image = logit_lens(vlm, pairs, NAMES[:3])
    assert set(np.unique(last.own.share)) <= {0, 1}
    assert not np.allclose(last.own.probability, image.own.probability)


@each_family
def test_the_last_layer_gives_the_logits_of_every_family(family, monkeypatch):
    vlm, inputs = build(family)
    ids = {"red": 5, "blue": 9}
    monkeypatch.setattr(VLM, "tokenizer", _Words(ids))
    monkeypatch.setattr(vlm, "prepare", lambda prompts, images: inputs)
    pairs = WORLDS["drawn"].concept_items("colour", 2, 0)
    image = vlm.image_mask(inputs)
    if image is None:
        with pytest.raises(ValueError, match="cross-attention"):
            logit_lens(vlm, pairs, [("red",), ("blue",)])
        return
    found = logit_lens(vlm, pairs, [("red",), ("blue",)])
    expected = lens_scores(read_off(vlm.record(**inputs).logits, image), [[5], [9]])
    for part, known in zip(found.own, expected, strict=True):
        assert part[-1] == pytest.approx(known, rel=1e-4)
    assert found.own.probability.shape == (vlm.n_layers + 1, 2)


class _Words:
    """A tokenizer that knows whole words."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [self.ids[text.strip()]]}

    def decode(self, ids):
        return "piece"


def test_first_pieces_are_read_from_the_tokenizer():
    tokenizer = build_tokenizer()
    for word in ("triangle", "circle", "anna", "red"):
        (first,) = first_pieces(tokenizer, [word])
        piece = tokenizer.decode([first]).strip()
        assert word.startswith(piece)
        assert piece
    shared = {*first_pieces(tokenizer, ["triangle"]), *first_pieces(tokenizer, ["triangolo"])}
    assert first_pieces(tokenizer, ["triangle", "triangolo"]) == sorted(shared)


def test_a_space_by_itself_is_not_a_piece():
    class Spaced:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [0, 7] if text.startswith(" ") else [4, 9]}

        def decode(self, ids):
            return " " if ids == [0] else "x"

    assert first_pieces(Spaced(), ["red"]) == [4, 7]


def test_words_of_another_number_than_the_pairs_are_refused(vlm):
    with pytest.raises(ValueError, match="3 pairs but 5 words"):
        logit_lens(vlm, WORLDS["drawn"].concept_items("colour", 3, 0), NAMES)
