import itertools

import pytest
import torch
from torch.nn import functional as F

from vlalign_utils.data.documents import IGNORE, Document
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo import chat_data
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe

FAMILIES = ("llava", "qwen3vl", "gemma3", "idefics3", "mllama")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    recipe = read_recipe(ROOT / "zoo" / "recipes" / f"{request.param}.yml")
    tokenizer = build_tokenizer_for(recipe)
    model, processor = build_model(recipe, tokenizer, 0), build_processor(recipe, tokenizer)
    return recipe, model, chat_data.Writer(model, processor, recipe.image_text)


def spoken(writer, rows):
    return [writer.processor.tokenizer.decode(row[row != IGNORE]) for row in rows["labels"]]


def test_answers_carry_the_loss_whatever_the_image_takes(family):
    _, _, writer = family
    batch = next(chat_data.image_rows("tuned", writer, 10, 1, seed=0))
    assert [len(rows["labels"]) for rows in batch] == [8, 2]
    for rows in batch:
        assert all(text.endswith("</s>") for text in spoken(writer, rows))
        assert torch.equal(
            rows["labels"][rows["labels"] != IGNORE], rows["input_ids"][rows["labels"] != IGNORE]
        )
    text = Document("a red star. ", (("what colour is the star?", "red"), ("what is there?", "~red star.")))
    assert spoken(writer, writer.rows([text])) == ["red</s> star.</s>"]


@pytest.mark.slow_except("idefics3", "llava", "mllama", "qwen3vl")
def test_the_loss_is_that_of_the_rows_one_by_one(family):
    _, model, writer = family
    task = chat_data.Chatting(model).eval()
    batch = next(chat_data.image_rows("tuned", writer, 5, 1, seed=0))
    with torch.no_grad():
        whole = task(batch)
        nll, count = 0.0, 0
        for rows in batch:
            for i in range(len(rows["labels"])):
                length = int(rows["attention_mask"][i].sum())
                one = {
                    name: value[i : i + 1, :length] if value.shape[:2] == rows["input_ids"].shape else value
                    for name, value in rows.items()
                    if name != "labels"
                }
                images = len(rows["labels"])
                for name, value in one.items():
                    if "input_ids" in name or value.shape[:2] == (1, length):
                        continue
                    each = value.shape[0] // images
                    one[name] = value[i * each : (i + 1) * each]
                if "cross_attention_mask" in one:
                    one["cross_attention_mask"] = one["cross_attention_mask"][:, :length]
                logits = model(**one).logits[0, :-1]
                target = rows["labels"][i, 1:length]
                nll += F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum").item()
                count += int((target != IGNORE).sum())
    assert whole.item() == pytest.approx(nll / count, rel=1e-3)


def test_a_step_gets_the_same_batch_however_the_run_is_cut(family):
    _, _, writer = family
    for make in (lambda first: chat_data.image_rows("aligned", writer, 4, 3, 1, first),
                 lambda first: chat_data.text_rows(writer, 4, 3, 1, first)):  # fmt: skip
        whole = list(make(0))
        for one, other in zip(itertools.islice(whole, 1, None), make(1), strict=True):
            assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())


def test_an_answer_that_the_processor_writes_otherwise_is_refused(family, monkeypatch):
    _, _, writer = family
    monkeypatch.setattr(chat_data, "targets", lambda document, tokenizer: [IGNORE, 3, 4])
    with pytest.raises(ValueError, match="does not write answers as its tokenizer does"):
        writer.rows([Document("", (("who?", "anna"),))])
