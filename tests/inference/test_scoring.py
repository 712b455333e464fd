import dataclasses

import numpy as np
import pytest
import torch

from vlalign_utils import VLM
from vlalign_utils.data.caption_scores import agreement
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.inference import scoring
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe


@pytest.fixture(scope="module")
def vlm():
    """A random model of the zoo's."""
    recipe = read_recipe(ROOT / "zoo" / "recipes" / "llava.yml")
    tokenizer = build_tokenizer_for(recipe)
    return VLM(build_model(recipe, tokenizer, 0).eval(), build_processor(recipe, tokenizer))


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
    items = load_suite("attributes", 6) + load_suite("text", 5)
    scores = scoring.evaluate(vlm, items, batch_size=4)
    expected = [naive(vlm, item) for item in items]
    assert scores.correct.tolist() == [c for c, _ in expected]
    np.testing.assert_allclose(scores.prob, [p for _, p in expected], rtol=1e-3)


def test_a_row_is_correct_only_when_every_answer_token_is_the_likeliest():
    answers = torch.tensor([[-1, 5, 2], [-1, 5, 2], [-1, -1, 2]])
    logits = torch.zeros(3, 3, 8)
    logits[0, 0, 5] = logits[0, 1, 2] = 9.0
    logits[1, 0, 4] = logits[1, 1, 2] = 9.0
    logits[2, 1, 2] = 9.0
    scores = scoring.answer_scores(logits, answers)
    assert scores.correct.tolist() == [True, False, True]
    assert scores.prob[0] > 0.99 > 0.01 > scores.prob[1]


def test_the_tokens_read_begin_before_the_longest_answer():
    assert scoring.tokens_read(torch.tensor([[-1, -1, -1, 5, 2], [-1, -1, 7, 5, 2]])) == 4
    assert scoring.tokens_read(torch.tensor([[-1, -1, -1, -1, 2]])) == 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_an_error(value):
    answers = torch.tensor([[-1, 5, 2], [-1, -1, 2]])
    logits = torch.zeros(2, 3, 8)
    logits[0, 2] = logits[1, 0] = value  # no answer is read there
    logits[0, 0, 1] = -torch.inf  # a token that the model rules out
    assert scoring.answer_scores(logits, answers).prob[1] == pytest.approx(1 / 8)
    logits[1, 1] = value
    with pytest.raises(
        ValueError, match=r"answer of row 1 of a batch are not finite numbers \(torch.float32\)"
    ):
        scoring.answer_scores(logits, answers)
    with pytest.raises(ValueError, match=r'overflowed half precision.*dtype="bfloat16"'):
        scoring.answer_scores(logits.half(), answers)


def naive_batches(items, size):
    """Batches as the studies on record had them: with pictures first, then by length, equals in order."""
    ordered = sorted(range(len(items)), key=lambda i: len(items[i].prompt) + len(items[i].answer))
    kinds = [[i for i in ordered if (items[i].image is None) == blind] for blind in (False, True)]
    return [rows[i : i + size] for rows in kinds for i in range(0, len(rows), size)]


def test_the_order_of_batches_is_that_of_the_studies_on_record(vlm):
    items = load_suite("text", 9) + load_suite("attributes", 10) + load_suite("existence", 4)
    assert [batch.rows for batch in scoring.batches(vlm, items, 3)] == naive_batches(items, 3)


def test_batches_cover_every_item_once_and_mark_its_answer(vlm):
    items = load_suite("existence", 5) + load_suite("text", 4)
    seen = []
    for batch in scoring.batches(vlm, items, batch_size=3):
        seen += batch.rows
        assert ("pixel_values" in batch.inputs) == (items[batch.rows[0]].image is not None)
        for row, marked in zip(batch.rows, batch.answers, strict=True):
            assert vlm.tokenizer.decode(marked[marked >= 0]) == items[row].answer + vlm.tokenizer.eos_token
    assert sorted(seen) == list(range(9))


@pytest.mark.slow
def test_the_likeliest_choice_is_that_of_the_whole_texts_likelihood(vlm):
    items = load_suite("compositional", 5)
    scores = scoring.evaluate(vlm, items, batch_size=3)
    for item, correct, prob in zip(items, scores.correct, scores.prob, strict=True):
        likely = np.array([naive(vlm, dataclasses.replace(item, answer=c))[1] for c in item.choices])
        assert correct == (likely.argmax() == item.choices.index(item.answer))
        assert prob == pytest.approx(likely[item.choices.index(item.answer)] / likely.sum(), rel=1e-2)


@pytest.mark.slow
def test_descriptions_are_the_model_s_own_and_scored_by_attribute(vlm):
    items = load_suite("captions", 5)
    said = scoring.descriptions(vlm, items, batch_size=2)
    for item, text in zip(items, said, strict=True):
        inputs = vlm.prepare([item.prompt], [item.image])
        longest = 2 * max(len(vlm.tokenizer(i.answer)["input_ids"]) for i in items)
        out = vlm.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        alone = vlm.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert alone.strip() == text
    expected = [agreement(text, item.answer).mean for text, item in zip(said, items, strict=True)]
    assert scoring.evaluate(vlm, items, batch_size=2).correct.tolist() == expected


@pytest.mark.slow
def test_metrics_may_be_mixed_and_scores_keep_the_order(vlm):
    items = load_suite("captions", 2) + load_suite("attributes", 3) + load_suite("compositional", 2)
    mixed = scoring.evaluate(vlm, items).correct
    parts = [scoring.evaluate(vlm, part).correct for part in (items[:2], items[2:5], items[5:])]
    assert mixed.tolist() == np.concatenate(parts).tolist()


@pytest.mark.slow
def test_a_suite_at_chance_is_uninformative():
    items = load_suite("existence", 200)
    for right, expected in ((5, False), (7, True)):  # of ten
        correct = (np.arange(200) % 10 < right).astype(float)
        assert scoring.informative(scoring.Scores(correct, correct), items) is expected
