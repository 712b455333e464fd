"""Where the words of a text are among the tokens of a chat that holds it, for any tokenizer."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vlalign_utils.inference.token_groups import Group, Tokens

_WORD = re.compile(r"\w+")


def word_list(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def last_tokens(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """Position of the last token of each word of `text`, found by decoding longer and longer beginnings.

    Raises ValueError when the tokens do not read as a chat with this text in it.
    """
    ends = [len(tokenizer.decode(ids[: i + 1], clean_up_tokenization_spaces=False)) for i in range(len(ids))]
    start = tokenizer.decode(ids, clean_up_tokenization_spaces=False).lower().rfind(text.lower())
    if start < 0:
        raise ValueError(f"the tokens do not hold the text {text!r} as it is written")
    edges = [start + match.end() for match in _WORD.finditer(text)]
    return [next(i for i, end in enumerate(ends) if end >= edge) for edge in edges]


def spoken(tokenizer: Any, texts: Sequence[str]) -> Group:
    """The group of the last tokens of the words that each item says: `texts[i]` is item i's."""

    def group(tokens: Tokens) -> Bool[Tensor, "batch tokens"]:
        mask = torch.zeros_like(tokens.attended)
        for i, row in enumerate(tokens.rows):
            places = tokens.attended[i].nonzero().flatten()
            at = last_tokens(tokenizer, tokens.ids[i][places].tolist(), texts[row])
            mask[i, places[at]] = True
        return mask

    return group
