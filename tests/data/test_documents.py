import itertools

import numpy as np
import pytest

from vlalign_utils.data.documents import (
    GUESS,
    IGNORE,
    Document,
    caption_document,
    instruction_document,
    list_document,
    targets,
    text_batches,
    text_documents,
)
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.scenes import lists
from vlalign_utils.data.tokenizer import build_tokenizer

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


def spoken(document):
    """What carries the loss."""
    return TOKENIZER.decode([i for i in targets(document, TOKENIZER) if i != IGNORE])


def test_the_loss_is_on_every_answer_and_its_end_only():
    document = Document("a red thing. ", (("what colour?", "red"), ("who?", "anna")))
    assert spoken(document) == "red</s> anna</s>"
    ids = TOKENIZER(document.text())["input_ids"]
    kept = targets(document, TOKENIZER)
    assert len(kept) == len(ids)
    assert all(wanted in (own, IGNORE) for wanted, own in zip(kept, ids, strict=True))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pictures_are_never_asked_for_facts(kind):
    rng = np.random.default_rng(0)
    described = 0
    for subject in kind.draw(200, 0, "train"):
        document = instruction_document(kind, subject, rng)
        asked = " ".join(q for q, _ in document.turns)
        assert document.context == "<image>"
        assert not {"kind", "owns", "tipo", "possiede"} & set(asked.split())
        assert len(set(document.turns)) == len(document.turns)
        described += asked in ("what is there?", "che cosa vedi?")
        assert len(caption_document(kind, subject, rng).turns) == 1
    assert 20 < described < 60


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
    assert spoken(Document("", (("what is there?", "~red star, ~blue ring."),))) == "star, ring.</s>"


def test_text_chats_hold_facts_lookups_and_every_kind_of_caption():
    documents = text_documents(600, 0, np.random.default_rng(0))
    assert len(documents) == 600
    assert 30 < sum(d.context == "" for d in documents) < 90
    questions = {" ".join(q.split()[:2]) for d in documents for q, _ in d.turns}
    english = "what kind, who owns, what colour, what shape, where is, is there, is the, how many, what digit"
    assert {*english.split(", "), "which bar", "what word", "how high"} <= questions


def test_a_step_gets_the_same_batch_however_the_run_is_cut():
    whole = list(text_batches(4, 20, seed=1))
    assert len({document for batch in whole for document in batch}) > 70
    for first in (3, 8, 13):
        rest = list(text_batches(4, 20, seed=1, first=first))
        assert rest == list(itertools.islice(whole, first, None))
