"""Training documents: short chats about one scene, with the loss on the answers only.

Binding (which colour goes with which form) is what a small model finds hard. What teaches it is chats that
describe the same scene again, things and attributes in another order and perhaps in the other language:
once a thing's first attribute is said, the others can be looked up. That first attribute cannot: which
thing comes next is random, and a loss on it would only drown the signal, so there is none (but for one
chat in ten, from which the model learns how a description begins). One scene a chat, so that no question is
ambiguous.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlalign_utils.data.language import (
    LANGUAGES,
    Language,
    Question,
    ask_count,
    ask_digit,
    ask_exists,
    ask_fact,
    ask_thing,
    caption,
    describe,
)
from vlalign_utils.data.tokenizer import SPECIAL
from vlalign_utils.data.world import Scene, scenes

IGNORE = -100  # label of positions without loss
LOOKUPS = ("colour", "form", "size", "place")
FACTS = ("kind", "owner")
BINDING = 0.3  # of the steps of text training
BEGINNINGS = 0.1  # of the descriptions, with loss on their unpredictable words too


GUESS = "~"  # marks, inside an answer, a word that cannot be predicted


@dataclass(frozen=True, slots=True)
class Document:
    """A chat: what stands before the first question (a caption, or nothing) and the turns.

    In answers, words that begin with GUESS carry no loss.
    """

    context: str
    turns: tuple[tuple[str, str], ...]

    def marked(self) -> str:
        """The chat as the tokenizer's chat template writes it, every turn closed; marks still in it."""
        ask, answer, eos = SPECIAL["ask"], SPECIAL["answer"], SPECIAL["eos"]
        turns = [f"{ask}{question}{answer}{reply}{eos}" for question, reply in self.turns]
        return SPECIAL["bos"] + ask + self.context + "".join(turns)[len(ask) :]

    def text(self) -> str:
        """The chat without marks."""
        return self.marked().replace(GUESS, "")


def _language(rng: np.random.Generator) -> Language:
    return LANGUAGES[rng.integers(len(LANGUAGES))]


def _turn(question: Question) -> tuple[str, str]:
    return question.text, question.answer


def _ask_any(
    scene: Scene, topics: tuple[str, ...], mention: tuple[str, ...], rng: np.random.Generator
) -> tuple[str, str]:
    language = _language(rng)
    topic = topics[rng.integers(len(topics))]
    if topic == "exists":
        return _turn(ask_exists(scene, language, rng))
    if topic == "count":
        return _turn(ask_count(scene, language, rng, mention))
    return _turn(ask_thing(scene, topic, language, rng, mention))


def _describe(scene: Scene, mention: tuple[str, ...], rng: np.random.Generator) -> tuple[str, str]:
    language = _language(rng)
    mark = "" if rng.random() < BEGINNINGS else GUESS
    return describe(language), caption(scene, language, mention, rng, mark)


def binding_document(scene: Scene, rng: np.random.Generator) -> Document:
    """A chat that names form and colour only and says the same again: where binding is learnt first."""
    mention = ("colour", "form")
    context = caption(scene, _language(rng), mention, rng) + " "
    turns = [_describe(scene, mention, rng) for _ in range(int(rng.integers(1, 3)))]
    return Document(context, (*turns, _ask_any(scene, mention, mention, rng)))


def text_document(scene: Scene, rng: np.random.Generator) -> Document:
    """A chat without a picture: descriptions again (0.45), questions on a caption (0.45), or bare facts."""
    kind = rng.random()
    if kind > 0.9:
        return Document("", tuple(_turn(ask_fact(_language(rng), rng)) for _ in range(4)))
    mention = ("colour", "form", *(a for a in ("size", "place") if rng.random() < 0.5))
    topics = (*(t for t in LOOKUPS if t in mention), "exists", "count", *FACTS)
    context = caption(scene, _language(rng), mention, rng) + " "
    if kind < 0.45:
        turns = [_describe(scene, mention, rng) for _ in range(int(rng.integers(1, 3)))]
        return Document(context, (*turns, _ask_any(scene, topics, mention, rng)))
    return Document(context, tuple(_ask_any(scene, topics, mention, rng) for _ in range(3)))


def caption_document(scene: Scene, rng: np.random.Generator) -> Document:
    """A chat about a picture that only describes it: what the connector learns from."""
    return Document(SPECIAL["image"], (_describe(scene, LOOKUPS, rng),))


def instruction_document(scene: Scene, rng: np.random.Generator) -> Document:
    """A chat of questions about a picture; never one that needs a fact."""
    topics = (*LOOKUPS, "exists", "count")
    return Document(SPECIAL["image"], tuple(_ask_any(scene, topics, LOOKUPS, rng) for _ in range(4)))


def digit_document(value: int, rng: np.random.Generator) -> Document:
    """A chat about a handwritten digit alone."""
    return Document(SPECIAL["image"], (_turn(ask_digit(value, _language(rng))),))


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, attention mask and labels (IGNORE where there is no loss), all right padded."""

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    labels: Int[Tensor, "rows tokens"]


def collate(documents: list[Document], tokenizer: PreTrainedTokenizerBase, image_tokens: int = 0) -> Batch:
    """Tokenize chats; the loss is on each answer and its end, but for words that are marked as guesses.

    An image takes `image_tokens` positions.
    """
    image = SPECIAL["image"]
    marked = [d.marked().replace(image, image * image_tokens) for d in documents]
    texts = [text.replace(GUESS, "") for text in marked]
    rows = tokenizer(
        texts, padding=True, padding_side="right", return_offsets_mapping=True, return_tensors="pt"
    )
    ids, ends = rows["input_ids"], rows["offset_mapping"][..., 1]
    answer, eos = (tokenizer.convert_tokens_to_ids(SPECIAL[name]) for name in ("answer", "eos"))
    opened, closed = (ids == answer).cumsum(1), (ids == eos).cumsum(1)
    # Inside an answer more have been opened than closed; its closing token is predicted too.
    inside = ((opened > closed) & (ids != answer)) | (ids == eos)
    for row, text in enumerate(marked):
        # Each mark before a word shifts that word one to the left in the text without marks.
        for i, guess in enumerate(re.finditer(GUESS + r"\w+", text)):
            inside[row] &= ~((ends[row] > guess.start() - i) & (ends[row] < guess.end() - i))
    return Batch(ids, rows["attention_mask"], ids.masked_fill(~inside, IGNORE))


def sorted_batches(
    items: list[tuple[int, int]], batch_size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Group (index, length) pairs into batches of like length, in random order: little padding."""
    order = [index for index, _ in sorted(items, key=lambda item: item[1])]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


def text_batches(
    tokenizer: PreTrainedTokenizerBase, batch_size: int, steps: int, seed: int, first: int = 0
) -> Iterator[Batch]:
    """Batches `first` to `steps` of text chats: binding alone for the first `BINDING`, then everything.

    Eight batches are made at a time and sorted by length; the same step always gets the same batch.
    """
    group = 8
    for start in range(first - first % group, steps, group):
        rng = np.random.default_rng([seed, start])
        binding = start < BINDING * steps
        make = binding_document if binding else text_document
        least = 2 if binding else 1
        made = [
            make(scene, rng)
            for scene in scenes(group * batch_size, int(rng.integers(2**31)), "train", min_things=least)
        ]
        lengths = [(i, len(d.text())) for i, d in enumerate(made)]
        for step, rows in enumerate(sorted_batches(lengths, batch_size, rng), start):
            if first <= step < steps:
                yield collate([made[i] for i in rows], tokenizer)
