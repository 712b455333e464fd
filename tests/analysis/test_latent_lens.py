import numpy as np
import pytest
import torch
from tiny_models import build, tiny_processor
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.analysis import latent_lens
from vlalign_utils.analysis.latent_lens import WordStates, image_states, nearest_words, word_states
from vlalign_utils.data.language import describe
from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.inference.states import collect

D, WORDS, TEXT_LAYERS, ITEMS, TOKENS = 64, 40, 5, 30, 6
PLANTED = (2, 0, 4)  # the text layer that each image layer copies


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [2, 1024])
def test_neighbours_are_those_of_a_loop_over_all_states(block, monkeypatch):
    monkeypatch.setattr(latent_lens, "BLOCK", block)
    image, text = noise(7, 12), noise(3, 11, 12, seed=1) + 0.3
    found = nearest_words(image, text, k=4)
    for i, token in enumerate(image.double()):
        every = [
            (float(token @ state / (token.norm() * state.norm())), layer, word)
            for layer, states in enumerate(text.double())
            for word, state in enumerate(states)
        ]
        best = sorted(every, reverse=True)[:4]
        assert found.cosine[i].tolist() == pytest.approx([c for c, _, _ in best], abs=1e-5)
        assert list(zip(found.layer[i].tolist(), found.word[i].tolist(), strict=True)) == [
            (layer, word) for _, layer, word in best
        ]


def planted(offset: float) -> tuple[list[Tensor], WordStates, list[tuple[str, ...]]]:
    """Each image token is its item's word as one text layer has it, plus noise.

    With `offset` every layer of either modality has a large mean of its own, as transformers have.
    """
    names = [f"w{i}" for i in range(WORDS)]
    states = noise(TEXT_LAYERS, WORDS, D)
    means = offset * noise(TEXT_LAYERS + len(PLANTED), 1, D, seed=1)
    own = torch.arange(ITEMS) % WORDS
    image = torch.stack([states[b, own] for b in PLANTED])[:, :, None]  # [a, items, 1, D]
    image = image + 0.2 * noise(len(PLANTED), ITEMS, TOKENS, D, seed=2) + means[TEXT_LAYERS:, None]
    text = WordStates(states + means[:TEXT_LAYERS], names)
    return list(image.unbind(1)), text, [(names[i], "nothing") if i % 2 else (names[i],) for i in own]


@pytest.mark.parametrize("features", ["raw", "centred", "standardised"])
def test_the_planted_layer_wins_and_its_word_is_named(features):
    image, text, names = planted(0.0)
    names = [own[:1] for own in names]
    found = latent_lens.latent_lens(image, text, names, features)
    assert found.layers.shape == found.null.shape == (len(PLANTED), ITEMS, TEXT_LAYERS)
    assert np.allclose(found.layers.sum(-1), 1)
    assert np.allclose(found.null.sum(-1), 1)
    for a, b in enumerate(PLANTED):
        assert found.layers[a, :, b].mean() > 0.95
        assert found.null[a, :, b].mean() < 0.5
        assert found.own[a].mean() > 0.95
        assert found.control[a].mean() < 0.05
        assert all(said[0] == own for said, (own,) in zip(found.said[a], names, strict=True))


def test_a_mean_shared_by_all_tokens_decides_unless_it_is_taken_away():
    image, text, names = planted(3.0)
    names = [own[:1] for own in names]
    raw, centred, standardised = (
        latent_lens.latent_lens(image, text, names, features)
        for features in ("raw", "centred", "standardised")
    )
    for a, b in enumerate(PLANTED):
        assert centred.layers[a, :, b].mean() > 0.9
        assert standardised.layers[a, :, b].mean() > 0.9
    assert np.mean([raw.layers[a, :, b].mean() for a, b in enumerate(PLANTED)]) < 0.6


def test_one_feature_of_enormous_size_does_not_decide_once_standardised():
    image, text, names = planted(0.0)
    names = [own[:1] for own in names]
    text.states[..., 0] += 1000 * noise(TEXT_LAYERS, WORDS, seed=5)
    for i, item in enumerate(image):
        item[..., 0] += 1000 * noise(len(PLANTED), TOKENS, seed=6 + i)
    centred, standardised = (
        latent_lens.latent_lens(image, text, names, features) for features in ("centred", "standardised")
    )
    assert standardised.own.mean() > 0.9
    assert centred.own.mean() < 0.5


def test_any_of_several_names_counts_and_items_may_have_unequal_tokens():
    image, text, names = planted(0.0)
    names = [(f"other{i}", own[0]) for i, own in enumerate(names)]
    ragged = [item[:, : 1 + i % TOKENS] for i, item in enumerate(image)]
    found = latent_lens.latent_lens(ragged, text, names)
    assert found.own.mean() > 0.9
    near = nearest_words(ragged[3][1], text.states, 1)  # raw: nothing was shifted
    assert found.layers[1, 3].argmax() == near.layer[:, 0].mode().values


def test_what_does_not_fit_is_refused(checks_off):
    image, text, names = planted(0.0)
    with pytest.raises(ValueError, match="30 items but 2 names"):
        latent_lens.latent_lens(image, text, names[:2])
    with pytest.raises(ValueError, match="expected one of raw, centred, standardised"):
        latent_lens.latent_lens(image, text, [own[:1] for own in names], "standardized")
    for k in (0, WORDS + 1):
        with pytest.raises(ValueError, match="the number of words"):
            nearest_words(image[0][0], text.states, k)
    broken = image[0][0].clone()
    broken[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        nearest_words(broken, text.states)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@pytest.mark.slow
def test_words_in_context_are_states_of_their_own_tokens(vlm):
    captions = ["red circle", "the blue square is green", "red"]
    found = word_states(vlm, captions, batch_size=2)
    assert found.words == " ".join(captions).split()
    expected = []
    for caption in captions:
        inputs = vlm.prepare([caption])
        resid = torch.stack(vlm.record(**inputs).resid)[:, 0]
        ids = inputs["input_ids"][0].tolist()
        expected += [resid[:, ids.index(vlm.tokenizer.convert_tokens_to_ids(w))] for w in caption.split()]
    assert torch.allclose(found.states, torch.stack(expected, dim=1), atol=1e-4)


def test_image_tokens_of_a_small_model_are_compared_end_to_end(vlm):
    pairs = WORLDS["drawn"].concept_items("colour", 4, 0)
    image = image_states(vlm, pairs, batch_size=3)
    pooled = collect(vlm, [describe("en")] * 4, [p.image for p in pairs], ["image"])["image"]
    assert [tuple(item.shape) for item in image] == [(vlm.n_layers + 1, 4, vlm.d_model)] * 4
    assert torch.allclose(torch.stack([item.mean(1) for item in image], dim=1), pooled, atol=1e-4)
    text = word_states(vlm, ["red circle", "green square", "blue circle"])
    found = latent_lens.latent_lens(image, text, [("red",), ("green",), ("blue",), ("red",)], k=3)
    assert found.layers.shape == (vlm.n_layers + 1, 4, vlm.n_layers + 1)
    assert {word for layer in found.said for item in layer for word in item} <= set(text.words)
