"""Answers that share their prompt have the likelihoods of those that are each read with the whole prompt."""

import dataclasses

import cross
import numpy as np
import pytest
import torch
import transformers
from tiny_models import ITEMS, TEMPLATE, build, randomise, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.inference import scoring, shared_prompt
from vlalign_utils.inference.answers import answer_tokens
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe

CHOICES = ("red", "green circle", "blue square is the", "what colour is the shape", "answer green")
ASKED = [dataclasses.replace(item, answer="red", choices=CHOICES, metric="choice") for item in ITEMS]
BLIND = [dataclasses.replace(item, image=None) for item in ASKED]
TEXTS = ("red", "two small blue circles top left", "ring", "a big yellow heart and a black square")


def reader(family):
    """A tiny model of a family with a processor for text alone."""
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = TEMPLATE
    return VLM(build(family)[0].model, tokenizer)


@pytest.fixture(scope="module")
def llava():
    return VLM(build("llava")[0].model, tiny_processor())


@pytest.fixture(scope="module")
def git():
    config, model_class, _ = cross.git()
    parts = tiny_processor()
    return VLM(
        randomise(model_class(config)), transformers.GitProcessor(parts.image_processor, parts.tokenizer)
    )


def same(found, expected):
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert own.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(own.log_prob, other.log_prob, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_likelihoods_are_those_of_the_plain_model_shown_each_choice_alone(llava):
    for item, found in zip(ASKED, shared_prompt.likelihoods(llava, ASKED), strict=True):
        prompt = llava.prepare([item.prompt], [item.image])
        for choice, log_prob, tokens in zip(item.choices, found.log_prob, found.tokens, strict=True):
            said = llava.tokenizer(f"{choice} </s>", add_special_tokens=False)["input_ids"]
            assert len(said) == tokens
            ids = torch.tensor([prompt["input_ids"][0].tolist() + said])
            logits = llava.model(input_ids=ids, pixel_values=prompt["pixel_values"], use_cache=False).logits
            each = logits[0, -len(said) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(said)[:, None])
            assert log_prob == pytest.approx(each.sum().item(), rel=1e-5)


def test_items_may_have_different_numbers_of_choices_and_no_image(llava):
    mixed = [ASKED[0], dataclasses.replace(BLIND[1], choices=CHOICES[:4]), ASKED[2], BLIND[3]]
    same(shared_prompt.likelihoods(llava, mixed), scoring.likelihoods_apart(llava, mixed, 64))


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["llava", "mllama", "qwen3vl", "gemma3", "idefics3"])
def test_every_kind_of_model_of_the_zoo_shares_its_prompts(chain):
    """Cross-attention, three kinds of positions, features added to several layers, sliding windows, tiles."""
    recipe = read_recipe(ROOT / "zoo" / "recipes" / f"{chain}.yml")
    tokenizer = build_tokenizer_for(recipe)
    vlm = VLM(build_model(recipe, tokenizer, 0).eval(), build_processor(recipe, tokenizer))
    randomise(vlm.model)
    items = load_suite("attributes", 5) + load_suite("text", 2)
    items = [dataclasses.replace(i, answer="ring", choices=TEXTS, metric="mean choice") for i in items]
    expected = scoring.likelihoods_apart(vlm, items, 64)
    assert max(np.ptp(own.log_prob / own.tokens) for own in expected) > 0.1
    same(shared_prompt.likelihoods(vlm, items), expected)
    assert shared_prompt.agrees(vlm, items[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl", "mllama", "lfm2_vl"])
def test_texts_share_their_prompts_too(family):
    vlm = reader(family)
    same(shared_prompt.likelihoods(vlm, BLIND), scoring.likelihoods_apart(vlm, BLIND, 64))


@pytest.mark.slow
def test_a_model_that_reads_token_ids_in_every_layer_is_asked_in_the_plain_way():
    vlm = reader("gemma4")
    expected = scoring.likelihoods_apart(vlm, BLIND, 64)
    assert not shared_prompt.agrees(vlm, BLIND[0], expected[0])
    assert scoring.evaluate(vlm, BLIND).prob.tolist() == pytest.approx(
        [np.exp(own.log_prob[0]) / np.exp(own.log_prob).sum() for own in expected]
    )


@pytest.mark.slow
def test_a_model_with_positions_in_its_embeddings_is_asked_in_the_plain_way(git):
    expected = scoring.likelihoods_apart(git, ASKED, 64)
    assert not shared_prompt.agrees(git, ASKED[0], expected[0])
    chosen = [own.log_prob.argmax() == 0 for own in expected]
    assert scoring.evaluate(git, ASKED).correct.tolist() == chosen


def test_few_choices_are_read_apart_and_many_together(llava, monkeypatch):
    read = []
    apart, shared = scoring.likelihoods_apart, shared_prompt.likelihoods
    monkeypatch.setattr(
        scoring, "likelihoods_apart", lambda *given: read.append(("apart", len(given[1]))) or apart(*given)
    )
    monkeypatch.setattr(
        shared_prompt, "likelihoods", lambda *given: read.append(("shared", len(given[1]))) or shared(*given)
    )
    few = dataclasses.replace(ASKED[1], choices=CHOICES[:2])
    mixed = scoring.evaluate(llava, [ASKED[0], few, ASKED[2]]).prob
    # The first item is read in both ways, to see whether they agree.
    assert read == [("apart", 1), ("shared", 1), ("shared", 2), ("apart", 1)]
    alone = [scoring.evaluate(llava, [item]).prob[0] for item in (ASKED[0], few, ASKED[2])]
    assert mixed.tolist() == pytest.approx(alone, rel=1e-4)


def test_a_prompt_that_depends_on_the_answer_is_refused(llava, monkeypatch):
    monkeypatch.setattr(
        "vlalign_utils.inference.answers._places",
        lambda processor, tokenizer, turns: [([5, 6, 7], 2, 3), ([5, 9, 7, 8], 2, 4)],
    )
    with pytest.raises(ValueError, match="otherwise before each answer: they share no prompt"):
        answer_tokens(llava, "what ?", True, ("red", "green circle"))
