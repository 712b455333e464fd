"""Checks of lists of texts: a single text is refused before its letters are taken for prompts."""

from collections.abc import Iterable, Mapping, Set
from typing import Any


def check_texts(texts: Iterable[Any], name: str, blank: bool = False) -> list[str]:
    """Check that `texts` (a list, tuple, one-dimensional array or Series) holds texts; return them as a list.

    `name` is the argument's, for messages; `blank` allows texts without a letter. Raises TypeError for a
    single text and for what is no list of texts, ValueError when one of its texts is empty.
    """
    single = name.removesuffix("s")
    if isinstance(texts, str):
        raise TypeError(f"{name} is one text, {texts!r}: pass a list with one {single} for each item")
    if not is_list(texts):
        raise TypeError(f"{name} is of type {type(texts).__name__}, expected a list of texts")
    found = list(texts)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is {text!r} of type {type(text).__name__}, expected a text (str)")
        if not blank and not text.strip():
            raise ValueError(f"{name}[{i}] is empty: {text!r}")
    return [str(text) for text in found]


def is_list(value: Any) -> bool:
    """Check that a value holds others in an order, each of which is an item: a text or a mapping does not."""
    if isinstance(value, str | bytes | Mapping | Set) or not hasattr(value, "__len__"):
        return False
    return bool(getattr(value, "ndim", 1) > 0)  # an array of no dimension has no items
