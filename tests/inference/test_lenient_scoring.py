import dataclasses

import numpy as np
import pytest
from PIL import Image

from vlalign_utils import VLM, load_suite, load_vlm
from vlalign_utils.data.caption_scores import cider
from vlalign_utils.data.items import Item
from vlalign_utils.data.lenient import is_right
from vlalign_utils.inference import lenient_scoring, scoring
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe


@pytest.fixture(scope="module")
def vlm():
    """A random model of the zoo's."""
    recipe = read_recipe(ROOT / "zoo" / "recipes" / "llava.yml")
    tokenizer = build_tokenizer_for(recipe)
    return VLM(build_model(recipe, tokenizer, 0).eval(), build_processor(recipe, tokenizer))


def items(colours, **fields):
    """An item about an image of each colour."""
    plain = {
        "prompt": "what colour?",
        "answer": "red",
        "choices": ("red", "blue"),
        "group": "a",
        "caption": "",
    }
    return [Item(Image.new("RGB", (48, 48), colour), **(plain | fields)) for colour in colours]


def alone(vlm, item, longest):
    """What the model generates about one item by itself."""
    inputs = vlm.prepare([item.prompt], None if item.image is None else [item.image])
    out = vlm.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    said = vlm.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said.strip()


@pytest.mark.slow
def test_answers_are_generated_and_judged_item_by_item(vlm):
    asked = items(["red", "blue"]) + [i.caption_version() for i in items(["red"], caption="a red square.")]
    own = [alone(vlm, item, lenient_scoring.ANSWER_TOKENS) for item in asked]
    # A random model says no word of these choices: make what it says about the second and third item right.
    asked[1:] = [dataclasses.replace(i, accepted=(text,)) for i, text in zip(asked[1:], own[1:], strict=True)]
    scores = lenient_scoring.evaluate_lenient(vlm, asked, batch_size=2)
    expected = [is_right(text, i.answer, i.accepted, i.choices) for i, text in zip(asked, own, strict=True)]
    assert scores.correct.tolist() == scores.prob.tolist() == expected == [False, True, True]


@pytest.mark.slow
def test_strict_scores_of_what_a_model_says_are_those_of_the_answers_tokens():
    """A trained model, which answers some of these questions and not others."""
    asked = load_suite("attributes", 40) + load_suite("text", 20)
    trained = load_vlm("zoo/llava", stage="tuned")
    strict, lenient = lenient_scoring.evaluate_both(trained, asked)
    assert strict.correct.tolist() == scoring.evaluate(trained, asked).correct.tolist()
    assert 0.1 < strict.correct.mean() < 1
    assert (lenient.correct >= strict.correct).all()


def mean_log_prob(vlm, item, choice):
    """Mean log probability of the tokens of a choice and of the end, one token at a time."""
    inputs, found = vlm.prepare([item.prompt], [item.image]), []
    for token in vlm.tokenizer(choice + vlm.tokenizer.eos_token)["input_ids"]:
        last = vlm.model(**inputs).logits[0, -1].log_softmax(-1)
        found.append(float(last[token].detach()))
        ids = inputs["input_ids"].new_tensor([[*inputs["input_ids"][0].tolist(), token]])
        inputs |= {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)}
    return np.mean(found)


@pytest.mark.slow
def test_the_likeliest_choice_by_token_is_that_of_the_mean_log_probability(vlm):
    choices = ("a small red star top left", "ring", "two hearts")
    asked = [
        dataclasses.replace(item, answer=choices[i], choices=choices)
        for i, item in enumerate(items(["red", "blue", "white"], metric="mean choice"))
    ]
    scores = scoring.evaluate(vlm, asked, batch_size=4)
    for i, item in enumerate(asked):
        likely = np.array([mean_log_prob(vlm, item, choice) for choice in choices])
        assert scores.correct[i] == (likely.argmax() == i)
        assert scores.prob[i] == pytest.approx(np.exp(likely[i]) / np.exp(likely).sum(), rel=1e-3)
    for both in lenient_scoring.evaluate_both(vlm, asked, batch_size=4):
        assert both.correct.tolist() == scores.correct.tolist()


@pytest.mark.slow
def test_descriptions_are_compared_with_all_references_by_cider(vlm):
    texts = ("a red star.", "two blue rings.", "white hearts.")
    asked = [
        dataclasses.replace(item, answer=text, accepted=(f"the image shows {text}",), choices=())
        for item, text in zip(items(["red", "blue", "white"], metric="cider"), texts, strict=True)
    ]
    said = scoring.descriptions(vlm, asked)
    expected = cider(said, [[i.answer, *i.accepted] for i in asked]) / 10
    assert scoring.evaluate(vlm, asked).correct.tolist() == expected.tolist()
