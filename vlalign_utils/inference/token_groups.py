"""Groups of token positions in a batch, found from its inputs before the model runs.

A group is a function of the batch's `Tokens`. Those known by name are GROUPS and, for each of them,
"random:<name>": the control of equal size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlalign_utils.evidence.intervals import rng

Mask = Bool[Tensor, "batch tokens"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """What each position of a batch holds.

    `ids` are -1 where the model itself inserts image features; `answer` are the tokens of an appended
    answer, its end included; `rows` says which items of the data the batch is made of; `shown` are the image
    positions that depend on the pixels, None for all.
    """

    ids: Int[Tensor, "batch tokens"]
    attended: Mask
    image: Mask
    answer: Mask
    rows: Sequence[int]
    shown: Mask | None = None


Group = Callable[[Tokens], Mask]


def last_true(mask: Mask) -> Mask:
    """The last selected position of each row, and nothing in a row without one."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def _question(tokens: Tokens) -> Mask:
    image_ahead = tokens.image.flip(-1).cumsum(-1).flip(-1) > 0  # here or later
    return _asked(tokens) & ~image_ahead


def _asked(tokens: Tokens) -> Mask:
    """What stands before the answer: a tokenizer may put a token of its own behind it."""
    return tokens.attended & (tokens.answer.cumsum(-1) == 0)


# "question" is what follows the last image position, up to the answer: what the chat template puts there is
# part of it. Without image positions it is the whole prompt.
GROUPS: dict[str, Group] = {
    "image": lambda tokens: tokens.image,
    # A learned row end behind the last pixels is the same in every item.
    "last_image": lambda tokens: last_true(tokens.image if tokens.shown is None else tokens.shown),
    "text": lambda tokens: tokens.attended & ~tokens.image,
    "question": _question,
    "answer": lambda tokens: tokens.answer,
    "last": lambda tokens: last_true(_asked(tokens)),
}
_WHY_EMPTY = {
    "answer": "no answer was appended to its prompt",
    "question": "the model puts the image behind the text",
}


@dataclass(frozen=True)
class Random:
    """Control of equal size: random positions of group `of`, as many as group `like` has and none of them.

    Where `of` has fewer it is taken whole. The draw depends on the seed and the item alone, never on its
    batch or padding.
    """

    like: str
    of: str = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is not in GROUPS."""
        for name in (self.like, self.of):
            _check_known(name)

    def __call__(self, tokens: Tokens) -> Mask:
        """The positions, by item."""
        like = GROUPS[self.like](tokens)
        size = like.sum(dim=-1)
        return draw(GROUPS[self.of](tokens) & ~like, size, tokens.rows, self.seed, f"{self.of} {self.like}")


def draw(
    mask: Mask, size: Int[Tensor, " batch"], rows: Sequence[int], seed: int = 0, purpose: str = "tokens"
) -> Mask:
    """Random masked positions, `size` of each row or all where it has fewer, seeded by item and purpose."""
    chosen = np.zeros(mask.shape, dtype=bool)
    for i, (candidates, n, row) in enumerate(zip(mask.cpu().numpy(), size.tolist(), rows, strict=True)):
        positions = candidates.nonzero()[0]
        chosen[i, rng(seed, f"{purpose} {row}").permutation(positions)[:n]] = True
    return torch.from_numpy(chosen).to(mask.device)


def named(groups: Sequence[str | Random] | Mapping[str, Any]) -> dict[str, Group | Tensor]:
    """Groups by name: strings and Random name themselves; a mapping also holds functions and masks.

    Raises ValueError for an unknown name and TypeError for what cannot be a group.
    """
    pairs = groups.items() if isinstance(groups, Mapping) else [(_name(group), group) for group in groups]
    found = {str(name): _group(name, group) for name, group in pairs}
    if not found:
        raise ValueError(f"groups is empty; expected some of {_known()}")
    return found


def _name(group: Any) -> str:
    if isinstance(group, Random):
        return f"random:{group.like}" if group == Random(group.like) else repr(group)
    if not isinstance(group, str):
        raise TypeError(f"a group without a name must be a string or Random, got {type(group).__name__}")
    return group


def _group(name: str, group: Any) -> Group | Tensor:
    if isinstance(group, str):
        kind, _, like = group.rpartition(":")
        if kind == "random":
            return Random(like)
        _check_known(group)
        return GROUPS[group]
    if callable(group) or (isinstance(group, Tensor) and group.dtype == torch.bool):
        return group
    kind = f"a tensor of {group.dtype}" if isinstance(group, Tensor) else type(group).__name__
    raise TypeError(f"group {name!r} is {kind}; expected a name, Random, a function or a boolean mask")


def _known() -> str:
    return f"{', '.join(GROUPS)}, or random: before any of these"


def _check_known(name: str) -> None:
    if name not in GROUPS:
        raise ValueError(f"unknown token group {name!r}; expected one of {_known()}")


def masks(groups: Mapping[str, Group | Tensor], tokens: Tokens) -> dict[str, Mask]:
    """Positions of each group; padding belongs to none.

    Raises TypeError or ValueError, naming the group, when one gives no mask of the batch's shape or is
    empty in some item.
    """
    found = {}
    for name, group in groups.items():
        mask: Any = group if isinstance(group, Tensor) else group(tokens)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"group {name!r} must give a boolean tensor [batch, tokens]")
        if mask.shape != tokens.ids.shape:
            shape, expected = list(mask.shape), list(tokens.ids.shape)
            raise ValueError(f"group {name!r} has shape {shape}, the batch has [batch, tokens] = {expected}")
        found[name] = mask.to(tokens.attended.device) & tokens.attended
        empty = (~found[name].any(dim=-1)).nonzero().flatten().tolist()
        if empty:
            why = _WHY_EMPTY.get(name, "the item has no such tokens")
            if "image" in name:
                why = "the item has no image, or images take no positions in this model (cross-attention)"
            item = min(tokens.rows[i] for i in empty)
            raise ValueError(f"group {name!r} has no token in item {item}: {why}")
    return found


def read_tokens(
    inputs: Mapping[str, Any],
    image: Bool[Tensor, "batch positions"] | None,
    answer: Mask | None = None,
    rows: Sequence[int] | None = None,
    shown: Bool[Tensor, "batch positions"] | None = None,
) -> Tokens:
    """What each position of model inputs holds.

    `image` comes from `vlm.image_mask(inputs)`, `shown` from `vlm.pixel_tokens(inputs)`.
    A model may insert image features that have no placeholder: the tokens are then the other positions.
    Raises ValueError when their number does not fit.
    """
    ids: Tensor = inputs["input_ids"]
    attended = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    answer = torch.zeros_like(attended) if answer is None else answer
    image = torch.zeros_like(attended) if image is None else image
    if image.shape != ids.shape:
        if not ((~image).sum(dim=-1) == ids.shape[1]).all():
            raise ValueError(
                f"the decoder reads {list(image.shape)} positions, the inputs have {list(ids.shape)} tokens: "
                "no telling which is which"
            )
        ids, attended, answer = (
            torch.full(image.shape, fill, dtype=x.dtype, device=x.device).masked_scatter(~image, x)
            for x, fill in ((ids, -1), (attended, True), (answer, False))
        )
    return Tokens(ids, attended, image & attended, answer, range(len(ids)) if rows is None else rows, shown)
