"""Training documents: short chats about one scene, with the loss on the answers only.

Binding (which colour goes with which form) is what a small model finds hard. Three things teach it, in
this order. First, lists of six or seven things said again in another order, in the same words: many things,
so that leaving out those already said helps little. Then the attributes turn round, the language changes,
and questions look one thing up. Then scenes with all their attributes. There is no loss on the first
attribute of each thing (but for one chat in ten, from which the model learns how a description begins):
which thing comes next is random, and would only drown the signal. One scene a chat, so that no question is
ambiguous.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from vlalign_utils.data.kinds import KINDS, Kind
from vlalign_utils.data.language import (
    LANGUAGES,
    ORDER,
    Language,
    Question,
    ask_fact,
    ask_scene,
    caption,
    describe,
)
from vlalign_utils.data.scenes import Scene, lists
from vlalign_utils.data.tokenizer import SPECIAL

IGNORE = -100  # label of positions without loss
LOOKUPS = ("colour", "form", "size", "place")
FACTS = ("kind", "owner")
LISTS = 0.2  # of the steps of text training: lists said again
TURNED = 0.335  # of the steps by which lists are turned round, too
SAME_ORDER = SAME_LANGUAGE = 0.5  # of the lists when they are turned round
LOOKED_UP = 0.25  # of the turns about such a list that are questions
SHUFFLED = 0.5  # of the captions: attributes in another order than the language's own
BEGINNINGS = 0.1  # of the descriptions, with loss on their unpredictable words too
QUESTIONS = 6  # about a picture; asked twice, a question counts once
DESCRIBED = 0.2  # of the chats of instruction tuning
TEXT_SHARE = {"scenes": 0.68, "charts": 0.17, "signs": 0.03, "digits": 0.02, "facts": 0.1}


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
    return _turn(ask_scene(scene, _language(rng), rng, topics, mention))


def _say(
    scene: Scene, language: Language, mention: tuple[str, ...], rng: np.random.Generator, mark: str = ""
) -> str:
    """A caption with its things in random order, and in half of the cases their attributes too."""
    order = tuple(name for name in ORDER[language] if name in mention)
    return caption(scene, language, order, rng, mark, shuffle=rng.random() < SHUFFLED)


def _describe(scene: Scene, mention: tuple[str, ...], rng: np.random.Generator) -> tuple[str, str]:
    language = _language(rng)
    mark = "" if rng.random() < BEGINNINGS else GUESS
    return describe(language), _say(scene, language, mention, rng, mark)


def list_document(scene: Scene, rng: np.random.Generator, turned: bool) -> Document:
    """A chat that says a long list of coloured forms again: where binding is learnt first.

    The words stay the same; with `turned`, attributes and language may change, and a question may be asked.
    """
    order = ("colour", "form") if rng.integers(2) else ("form", "colour")
    language = _language(rng)
    context = caption(scene, language, order, rng, shuffle=False) + " "
    if turned:
        language = language if rng.random() < SAME_LANGUAGE else _language(rng)
        order = order if rng.random() < SAME_ORDER else order[::-1]
        if rng.random() < LOOKED_UP:
            return Document(context, tuple(_ask_any(scene, order, order, rng) for _ in range(3)))
    again = caption(scene, language, order, rng, GUESS, shuffle=False)
    return Document(context, ((describe(language), again),))


def scene_document(scene: Scene, rng: np.random.Generator) -> Document:
    """A chat on a caption that leaves attributes out: descriptions again (one in three), or questions."""
    mention = ("colour", "form", *(a for a in ("size", "place") if rng.random() < 0.5))
    topics = (*(t for t in LOOKUPS if t in mention), "exists", "exists", "count", *FACTS)
    topics += ("relation", "relation") if "place" in mention else ()
    context = _say(scene, _language(rng), mention, rng) + " "
    if rng.random() < 1 / 3:
        turns = [_describe(scene, mention, rng) for _ in range(int(rng.integers(1, 3)))]
        return Document(context, (*turns, _ask_any(scene, topics, mention, rng)))
    return Document(context, tuple(_ask_any(scene, topics, mention, rng) for _ in range(5)))


def fact_document(rng: np.random.Generator) -> Document:
    """A chat of bare facts."""
    return Document("", tuple(_turn(ask_fact(_language(rng), rng)) for _ in range(4)))


def caption_document(kind: Kind, subject: Any, rng: np.random.Generator, context: str = "") -> Document:
    """A chat that only describes a picture: what the connector learns from."""
    language = _language(rng)
    mark = "" if rng.random() < BEGINNINGS else GUESS
    said = kind.say(subject, language, rng, mark)
    return Document(context or SPECIAL["image"], ((describe(language), said),))


def question_document(kind: Kind, subject: Any, rng: np.random.Generator, context: str = "") -> Document:
    """A chat of questions about a picture; never one that needs a fact."""
    asked = (_turn(kind.ask(subject, _language(rng), rng)) for _ in range(QUESTIONS))
    return Document(context or SPECIAL["image"], tuple(dict.fromkeys(asked)))


def instruction_document(kind: Kind, subject: Any, rng: np.random.Generator) -> Document:
    """A chat about a picture as visual instruction tuning has them: mostly questions."""
    make = caption_document if rng.random() < DESCRIBED else question_document
    return make(kind, subject, rng)


def text_documents(n: int, seed: int, rng: np.random.Generator) -> list[Document]:
    """Chats without a picture: on captions of every kind of picture, and bare facts."""
    made = []
    names = rng.choice([*KINDS, "facts"], size=n, p=[TEXT_SHARE[name] for name in (*KINDS, "facts")])
    for name in (*KINDS, "facts"):
        count = int((names == name).sum())
        if name == "facts":
            made += [fact_document(rng) for _ in range(count)]
            continue
        kind = KINDS[name]
        for subject in kind.draw(count, seed, "train"):
            if name == "scenes":
                made.append(scene_document(subject, rng))
            else:
                make = caption_document if rng.random() < 1 / 4 else question_document
                made.append(make(kind, subject, rng, kind.say(subject, _language(rng), rng) + " "))
    return [made[i] for i in rng.permutation(n)]


def targets(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The chat's token ids, IGNORE where there is no loss: it is on answers, their ends, but no guesses.

    The picture's marker counts as one token, whatever it stands for: count from the end.
    """
    marked = document.marked()
    text = marked.replace(GUESS, "")
    row = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = np.array(row["input_ids"]), np.array(row["offset_mapping"])[:, 1]
    answer, eos = (tokenizer.convert_tokens_to_ids(SPECIAL[name]) for name in ("answer", "eos"))
    opened, closed = (ids == answer).cumsum(), (ids == eos).cumsum()
    # Inside an answer more have been opened than closed; its closing token is predicted too.
    inside = ((opened > closed) & (ids != answer)) | (ids == eos)
    # Each mark before a word shifts that word one to the left in the text without marks.
    for i, guess in enumerate(re.finditer(GUESS + r"\w+", marked)):
        inside &= ~((ends > guess.start() - i) & (ends < guess.end() - i))
    labels: list[int] = np.where(inside, ids, IGNORE).tolist()
    return labels


def sorted_batches(
    items: list[tuple[int, int]], batch_size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Group (index, length) pairs into batches of like length, in random order: little padding."""
    order = [index for index, _ in sorted(items, key=lambda item: item[1])]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


def text_batches(batch_size: int, steps: int, seed: int, first: int = 0) -> Iterator[list[Document]]:
    """Batches `first` to `steps` of text chats: lists, lists turned round, then everything.

    Eight batches are made at a time and sorted by length; the same step always gets the same batch.
    """
    group = 8
    for start in range(first - first % group, steps, group):
        rng = np.random.default_rng([seed, start])
        count, world_seed, done = group * batch_size, int(rng.integers(2**31)), start / steps
        if done < TURNED:
            turned = done >= LISTS
            worlds = lists(count, world_seed, 3 if turned else 6, 7)
            made = [list_document(world, rng, turned) for world in worlds]
        else:
            made = text_documents(count, world_seed, rng)
        lengths = [(i, len(d.text())) for i, d in enumerate(made)]
        for step, rows in enumerate(sorted_batches(lengths, batch_size, rng), start):
            if first <= step < steps:
                yield [made[i] for i in rows]
