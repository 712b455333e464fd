"""Several questions about one image as one sequence: the image is read once, and no question sees another.

A question's tokens attend to the shared beginning (system prompt, image) and to their own, and are counted as
if they followed it directly: each has the very states that it has when it is asked alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PADDING = -1  # segment of padding


@dataclass(frozen=True)
class Packed:
    """Sequences of a batch, padded on the right.

    `answers` holds the id of each answer token at its own position, -1 elsewhere; `segments` is 0 for the
    shared beginning, 1, 2, ... for the questions.
    """

    ids: Int[Tensor, "batch tokens"]
    answers: Int[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    segments: Int[Tensor, "batch tokens"]

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "batch 1 tokens tokens"]:
        """The attention mask that is added to scores: 0 where a token may attend, else the least number."""
        own, other = self.segments[:, :, None], self.segments[:, None, :]
        tokens = torch.arange(self.ids.shape[1], device=self.ids.device)
        # Padding attends to padding: a row without any key would be NaN.
        seen = ((own == other) | ((other == 0) & (own > 0))) & (tokens[:, None] >= tokens)
        least = torch.finfo(dtype).min
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, least)[:, None]


def pack(groups: Sequence[Sequence[tuple[list[int], list[int]]]], padding_id: int) -> Packed:
    """One sequence for each group of questions; each is its ids and its answers (-1 where no answer stands).

    Raises ValueError for a question without an answer.
    """
    rows = [_joined(group) for group in groups]
    longest = max(len(ids) for ids, *_ in rows)
    fills = (padding_id, -1, 0, PADDING)
    columns = (
        torch.tensor([values + [fill] * (longest - len(values)) for values in column])
        for column, fill in zip(zip(*rows, strict=True), fills, strict=True)
    )
    return Packed(*columns)


def _joined(
    group: Sequence[tuple[list[int], list[int]]],
) -> tuple[list[int], list[int], list[int], list[int]]:
    shared = _shared(group)
    first = group[0][0][:shared]
    ids, answers = list(first), [-1] * shared
    positions, segments = list(range(shared)), [0] * shared
    for number, (own, said) in enumerate(group, 1):
        ids += own[shared:]
        answers += said[shared:]
        positions += range(shared, len(own))
        segments += [number] * (len(own) - shared)
    return ids, answers, positions, segments


def _shared(group: Sequence[tuple[list[int], list[int]]]) -> int:
    """Length of the common beginning; the token before an answer is the question's own."""
    begins = []
    for _, said in group:
        if max(said) < 0:
            raise ValueError("a question has no answer to train on")
        begins.append(next(i for i, token in enumerate(said) if token >= 0))
    first = group[0][0]
    for i in range(min(begins) - 1):
        if any(ids[i] != first[i] for ids, _ in group):
            return i
    return min(begins) - 1
