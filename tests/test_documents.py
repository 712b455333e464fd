import itertools

import numpy as np
import torch

from vlalign_utils.data.documents import (
    GUESS,
    IGNORE,
    Document,
    caption_document,
    collate,
    digit_document,
    instruction_document,
    list_document,
    text_batches,
    text_document,
)
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.data.world import lists, scenes

TOKENIZER = build_tokenizer()


def test_a_chat_reads_as_the_chat_template_writes_it():
    document = Document("a red thing. ", (("what is there?", "red"), ("who?", "anna")))
    messages = [
        {"role": "user", "content": "a red thing. what is there?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "anna"},
    ]
    assert document.text() == TOKENIZER.apply_chat_template(messages, tokenize=False)


def test_the_loss_is_on_every_answer_and_its_end_only():
    document = Document("a red thing. ", (("what colour?", "red"), ("who?", "anna")))
    other = Document("", (("what digit is this?", "two"),))
    batch = collate([document, other], TOKENIZER)
    spoken = [TOKENIZER.decode(row[row != IGNORE]) for row in batch.labels]
    assert spoken == ["red</s> anna</s>", "two</s>"]
    kept = batch.labels != IGNORE
    assert torch.equal(batch.labels[kept], batch.input_ids[kept])


def test_a_picture_takes_its_positions():
    batch = collate([Document("<image>", (("what is there?", "red"),))], TOKENIZER, image_tokens=36)
    assert (batch.input_ids == TOKENIZER.image_token_id).sum() == 36


def test_pictures_are_never_asked_for_facts_nor_text_for_digits_alone():
    rng = np.random.default_rng(0)
    for scene in scenes(300, 0, "train"):
        asked = " ".join(q for q, _ in instruction_document(scene, rng).turns)
        assert not {"kind", "owns", "tipo", "possiede"} & set(asked.split())
        assert len(caption_document(scene, rng).turns) == 1
    assert "digit" in digit_document(3, rng).turns[0][0] or "cifra" in digit_document(3, rng).turns[0][0]


def test_a_list_is_said_again_in_the_same_words_and_another_order():
    rng = np.random.default_rng(0)
    reordered = 0
    for scene in lists(30, 0, 6, 7):
        document = list_document(scene, rng, turned=False)
        first, again = document.context.strip(" ."), document.turns[0][1].rstrip(".")
        assert sorted(first.split(", ")) == sorted(again.replace(GUESS, "").split(", "))
        assert all(phrase.startswith(GUESS) for phrase in again.split(", "))
        reordered += first != again.replace(GUESS, "")
    assert reordered > 25


def test_a_list_turned_round_changes_order_and_language_and_is_asked_about():
    rng = np.random.default_rng(0)
    documents = [list_document(scene, rng, turned=True) for scene in lists(200, 0, 3, 7)]
    said = [(d.context.strip(" ."), d.turns[0][1].replace(GUESS, "").rstrip(".")) for d in documents]
    words = [(set(one.replace(",", "").split()), set(two.replace(",", "").split())) for one, two in said]
    assert any(one.isdisjoint(two) for one, two in words)  # translated
    same_words = [pair for pair, (one, two) in zip(said, words, strict=True) if one == two]
    assert any(set(one.split(", ")) != set(two.split(", ")) for one, two in same_words)  # attributes swapped
    assert any(len(d.turns) == 3 for d in documents)  # questions


def test_words_that_cannot_be_predicted_carry_no_loss():
    batch = collate([Document("", (("what is there?", "~red star, ~blue ring."),))], TOKENIZER)
    spoken = batch.labels[batch.labels != IGNORE]
    assert TOKENIZER.decode(spoken) == "star, ring.</s>"


def test_text_chats_hold_facts_and_lookups():
    rng = np.random.default_rng(0)
    documents = [text_document(scene, rng) for scene in scenes(400, 0, "train")]
    assert any(d.context == "" for d in documents)
    questions = {q.split()[0] + " " + q.split()[1] for d in documents for q, _ in d.turns}
    assert {
        "what kind",
        "who owns",
        "what colour",
        "what shape",
        "where is",
        "is there",
        "how many",
    } <= questions


def test_a_step_gets_the_same_batch_however_the_run_is_cut():
    whole = list(text_batches(TOKENIZER, 4, 20, seed=1))
    for first in (3, 8, 13):
        rest = list(text_batches(TOKENIZER, 4, 20, seed=1, first=first))
        assert len(rest) == 20 - first
        for one, other in zip(itertools.islice(whole, first, None), rest, strict=True):
            assert torch.equal(one.input_ids, other.input_ids)
