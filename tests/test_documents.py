import itertools

import numpy as np
import torch

from vlalign_utils.data.documents import (
    IGNORE,
    Document,
    binding_document,
    caption_document,
    collate,
    digit_document,
    instruction_document,
    text_batches,
    text_document,
)
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.data.world import scenes

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


def test_binding_chats_repeat_the_same_things():
    rng = np.random.default_rng(0)
    for scene in scenes(50, 0, "train", min_things=2):
        document = binding_document(scene, rng)
        assert 1 <= len(document.turns) - 1 <= 2
        for _, answer in document.turns[:-1]:
            assert answer.count(",") == len(scene.things) - 1


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
