import numpy as np
import pytest
import torch

from vlalign_utils import VLM, tasks
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.recipe import read_recipe
from vlalign_utils.zoo.stages import build_processor


@pytest.mark.parametrize("name", tasks.SUITES)
def test_suites_are_seeded_and_answers_are_among_the_choices(name):
    items, again, other = (tasks.load(name, 40, seed) for seed in (1, 1, 2))
    assert [(i.prompt, i.answer) for i in items] == [(i.prompt, i.answer) for i in again]
    assert [(i.prompt, i.answer) for i in items] != [(i.prompt, i.answer) for i in other]
    for item in items:
        assert item.answer in item.choices
        assert len(set(item.choices)) == len(item.choices)
        assert item.chance == 1 / len(item.choices)
        assert (item.image is None) == (name == "text")


def test_the_text_suite_asks_about_its_caption():
    assert all(item.prompt.startswith(item.caption) for item in tasks.load("text", 20))


def test_unknown_suites_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match="no suite 'colours'; there are attributes, existence"):
        tasks.load("colours", 5)
    with pytest.raises(ValueError, match="n is 0"):
        tasks.load("digits", 0)


@pytest.fixture(scope="module")
def vlm():
    """A random model of the zoo's shape with the zoo's processor."""
    recipe = read_recipe(ROOT / "zoo" / "recipes" / "llava.yml")
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config=recipe.vision_config,
        text_config=recipe.text_config | {"num_hidden_layers": 2},
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
    )
    return VLM(LlavaForConditionalGeneration(config).eval(), build_processor(recipe, tokenizer))


def naive(vlm, item):
    """Probability and greedy choice of the answer, one token at a time, one item at a time."""
    eos = vlm.tokenizer.eos_token
    inputs = vlm.prepare([item.prompt], None if item.image is None else [item.image])
    correct, prob = True, 1.0
    for token in vlm.tokenizer(item.answer + eos)["input_ids"]:
        with torch.no_grad():
            last = vlm.model(**inputs).logits[0, -1].softmax(-1)
        correct, prob = correct and int(last.argmax()) == token, prob * float(last[token])
        ids = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return correct, prob


def test_scores_are_those_of_decoding_one_token_at_a_time(vlm):
    items = tasks.load("attributes", 6) + tasks.load("text", 5)
    scores = tasks.evaluate(vlm, items, batch_size=4)
    expected = [naive(vlm, item) for item in items]
    assert scores.correct.tolist() == [c for c, _ in expected]
    np.testing.assert_allclose(scores.prob, [p for _, p in expected], rtol=1e-3)


def test_a_row_is_correct_only_when_every_answer_token_is_the_likeliest():
    answers = torch.tensor([[-1, 5, 2], [-1, 5, 2], [-1, -1, 2]])
    logits = torch.zeros(3, 3, 8)
    logits[0, 0, 5] = logits[0, 1, 2] = 9.0
    logits[1, 0, 4] = logits[1, 1, 2] = 9.0
    logits[2, 1, 2] = 9.0
    scores = tasks.answer_scores(logits, answers)
    assert scores.correct.tolist() == [True, False, True]
    assert scores.prob[0] > 0.99 > 0.01 > scores.prob[1]


def test_batches_cover_every_item_once_and_mark_its_answer(vlm):
    items = tasks.load("existence", 5) + tasks.load("text", 4)
    seen = []
    for batch in tasks.batches(vlm, items, batch_size=3):
        seen += batch.rows
        assert ("pixel_values" in batch.inputs) == (items[batch.rows[0]].image is not None)
        for row, marked in zip(batch.rows, batch.answers, strict=True):
            assert vlm.tokenizer.decode(marked[marked >= 0]) == items[row].answer + vlm.tokenizer.eos_token
    assert sorted(seen) == list(range(9))
