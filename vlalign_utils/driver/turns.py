"""A user's turn and its answer, written as the model's own chat template or plain format writes them."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import nn

from vlalign_utils.driver.verbosity import without_messages

MARK = "THE-TEXT-IN-QUESTION"  # stands where a text goes, to see what a template writes around it


@dataclass(frozen=True)
class Turn:
    """One item's text for a processor, and where in its characters the answer is.

    `prompt` is where the prompt ends as `generate` is given it, `answer` where the answer begins: between
    them lie only spaces, which the model writes itself. With `suffix` the processor appends the answer to
    `text` by itself, and both are 0: they count in the suffix.
    """

    text: str
    prompt: int
    answer: int
    suffix: str | None = None


def end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end the model's turns, the one to add to a text without an end first.

    They are those of its generation configuration and of its tokenizer.
    """
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = [] if stop is None else [int(i) for i in (stop if isinstance(stop, Iterable) else [stop])]
    eos = getattr(tokenizer, "eos_token_id", None)
    own = [] if eos is None else [int(eos)]
    return list(dict.fromkeys([*own, *stops] if not stops or eos in stops else [*stops, *own]))


def write_turns(
    processor: Any,
    prompts: Sequence[str],
    answers: Sequence[str] | None,
    with_image: bool,
    ends: Sequence[int],
) -> list[Turn]:
    """One user turn for each prompt, and its answer up to the token that ends the assistant's turn.

    The chat template writes both together; `ends` are ids of tokens that end a turn. Where the template
    writes none of them behind an answer, its first special token there ends the turn, else the first of
    `ends`. A template that knows no assistant's turn, or begins one otherwise than `generate` is given it,
    has the answer appended to the prompt. Without a chat template the processor's plain format is used: its
    image token, the prompt, a space and the answer, or the answer as the processor's own suffix.
    Raises ValueError when the template has no place for an image, when it writes an answer otherwise than
    given, and when no token is known to end a turn.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if answers is not None and not ends:
        raise ValueError(
            f"neither the generation configuration nor {type(tokenizer).__name__} says which token ends a "
            "turn: set eos_token_id"
        )
    templated = next((p for p in (processor, tokenizer) if getattr(p, "chat_template", None)), None)
    if templated is None:
        return _plain(processor, tokenizer, prompts, answers, with_image, ends)
    chat = _Chat(templated, with_image)
    asked = chat.write(prompts)
    if answers is None:
        return [Turn(text, len(text), len(text)) for text in asked]
    tail = chat.behind_answer()
    end = _end(tail or "", tokenizer, ends)
    if tail is None:
        return [_appended(before, answer, end) for before, answer in zip(asked, answers, strict=True)]
    return [
        _joint(whole, before, answer, tail, end)
        for whole, before, answer in zip(chat.write(prompts, answers), asked, answers, strict=True)
    ]


class _Chat:
    """A chat template, and whether it takes the contents of each role as parts or as plain text."""

    def __init__(self, templated: Any, with_image: bool) -> None:
        self._templated = templated
        self._image = [{"type": "image"}] if with_image else []
        self._parts = {"user": True, "assistant": True}
        if not self._takes("user", [{"role": "user", "content": _parts(MARK)}]):
            self._parts["user"] = False
            if not self._takes("user", [{"role": "user", "content": MARK}]):
                raise ValueError("the chat template writes no text of a user: give the processor another one")
            if with_image:
                raise ValueError(
                    "the chat template takes text alone and has no place for an image: give the processor "
                    "the model's own template for images"
                )

    def write(self, prompts: Sequence[str], answers: Sequence[str] | None = None) -> list[str]:
        """Each prompt with the generation prompt, or with its answer."""
        chats = [[self._user(prompt)] for prompt in prompts]
        if answers is not None:
            for chat, answer in zip(chats, answers, strict=True):
                chat.append(self._assistant(answer))
        return self._render(chats, answers is None)

    def behind_answer(self) -> str | None:
        """Text that the template writes behind an answer; None when it knows no assistant's turn."""
        for parts in (True, False):
            self._parts["assistant"] = parts
            text = self._try([self._user("?"), self._assistant(MARK)], False)
            if text is not None:
                return text.rpartition(MARK)[2]
        return None

    def _takes(self, role: str, chat: list[dict[str, Any]]) -> bool:
        return self._try(chat, True) is not None

    def _try(self, chat: list[dict[str, Any]], prompted: bool) -> str | None:
        """Text with MARK in it, None where the template does not take this form of contents."""
        try:
            text = self._render([chat], prompted)[0]
        except (TemplateError, TypeError):  # e.g. a list added to a text, or a role it refuses
            return None
        # A template that expects text prints parts as Python or JSON would.
        return text if MARK in text and "'type'" not in text and '"type"' not in text else None

    def _render(self, chats: list[list[dict[str, Any]]], prompted: bool) -> list[str]:
        texts: list[str] = self._templated.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=prompted
        )
        return texts

    def _user(self, prompt: str) -> dict[str, Any]:
        content = [*self._image, *_parts(prompt)] if self._parts["user"] else prompt
        return {"role": "user", "content": content}

    def _assistant(self, answer: str) -> dict[str, Any]:
        return {"role": "assistant", "content": _parts(answer) if self._parts["assistant"] else answer}


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _joint(whole: str, before: str, answer: str, tail: str, end: str) -> Turn:
    """Turn that a template wrote with its answer, if it begins as `generate` is given it."""
    body = whole.removesuffix(tail)
    said = answer if body.endswith(answer) else answer.strip()  # many templates trim contents
    if not whole.endswith(tail) or not body.endswith(said):
        raise ValueError(f"the chat template writes the answer {answer!r} otherwise than given: {whole!r}")
    head = body[: len(body) - len(said)]
    asked = before.rstrip()
    if not head.startswith(asked) or head[len(asked) :].strip():
        return _appended(before, answer, end)
    return Turn(head + said + end, len(before) if head.startswith(before) else len(head), len(head))


def _appended(before: str, answer: str, end: str) -> Turn:
    return Turn(before + answer + end, len(before), len(before))


def _end(tail: str, tokenizer: Any, ends: Sequence[int]) -> str:
    """Text that ends a turn: the tail up to the first token that does."""
    own = [tokenizer.decode([i]) for i in ends]
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = [str(token) for token in added if token.special]
    for tokens in (own, special):
        found = [(tail.find(token), -len(token)) for token in tokens if token and token in tail]
        if found:
            at, length = min(found)
            return tail[: at - length]
    return str(own[0])


def _plain(
    processor: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str] | None,
    with_image: bool,
    ends: Sequence[int],
) -> list[Turn]:
    token = _image_token(processor) if with_image else ""
    texts = [token + prompt for prompt in prompts]
    if answers is None:
        return [Turn(text, len(text), len(text)) for text in texts]
    if "suffix" in inspect.signature(type(processor).__call__).parameters:
        return [Turn(text, 0, 0, answer) for text, answer in zip(texts, answers, strict=True)]
    end = tokenizer.decode([ends[0]])
    turns = []
    for text, answer in zip(texts, answers, strict=True):
        space = "" if not text or text[-1].isspace() or answer[0].isspace() else " "
        turns.append(Turn(text + space + answer + end, len(text), len(text + space)))
    return turns


def _image_token(processor: Any) -> str:
    """Image token that a processor's plain call expects in a text: empty where it inserts that itself."""
    token = getattr(processor, "image_token", None)
    if token is None:
        return ""
    token = str(token)

    def ids(text: str) -> torch.Tensor:
        with without_messages():  # some report that they insert the token
            found: torch.Tensor = processor(
                text=[text], images=[[Image.new("RGB", (64, 64))]], return_tensors="pt"
            )["input_ids"]
        return found

    try:
        without = ids("?")
    except ValueError:  # as many tokens as images are demanded
        return token
    inserted = processor.tokenizer.convert_tokens_to_ids(token) in without
    # Where both are written alike, the token says outright what is meant.
    return token if not inserted or torch.equal(without, ids(f"{token}?")) else ""
