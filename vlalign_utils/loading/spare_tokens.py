"""Spare special tokens of a part's tokenizer, under the names that a model's processor asks for.

The vocabulary keeps its rows: a renamed token has the number, and so the embedding, that it had.
"""

import json
from collections.abc import Mapping
from pathlib import Path

FILES = "tokenizer*.json"
WORDS = "tokenizer.json"


def write_tokenizer(part: Path, folder: Path, tokens: Mapping[str, str]) -> None:
    """Write the tokenizer of a part's folder, where it has one, into another folder.

    Args:
        part: folder of the part.
        folder: where the files go.
        tokens: spare special tokens by the names that they get.

    Raises:
        ValueError: for a token that is none of the tokenizer's special ones, or a name that is taken.
    """
    quoted = {_quoted(spare): _quoted(name) for name, spare in tokens.items()}
    for path in part.glob(FILES):
        text = path.read_text(encoding="utf-8")
        if path.name == WORDS:
            _check(path, text, tokens)
        for spare, name in quoted.items():
            text = text.replace(spare, name)
        (folder / path.name).write_text(text, encoding="utf-8")


def _check(path: Path, text: str, tokens: Mapping[str, str]) -> None:
    special = [token["content"] for token in json.loads(text)["added_tokens"] if token["special"]]
    if strays := sorted(set(tokens.values()) - set(special)):
        raise ValueError(f"tokens: {strays[0]!r} is no special token of {path}; it has {', '.join(special)}")
    if taken := sorted(name for name in tokens if _quoted(name) in text):
        raise ValueError(f"tokens: {path} has a token {taken[0]!r} already: give the spare one another name")


def _quoted(token: str) -> str:
    return json.dumps(token, ensure_ascii=False)
