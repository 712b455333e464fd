"""Logit lens on image tokens: which words would the model say if it stopped at this layer, at this token?

The model's own final norm and head read the stream of every layer, through replays that run nothing else.
Source: Neo et al. 2024, arXiv 2410.07149.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlalign_utils.data.concepts import other_words
from vlalign_utils.data.paired import Pair
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.batching import backing_off, exact_batches
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.token_groups import Group, masks, named, read_tokens

Words = Sequence[tuple[str, ...]]


class LensScores(NamedTuple):
    """How clearly words are read off an item's tokens: `layers` is absent for a single layer."""

    probability: Float[np.ndarray, "*layers items"]  # of any of the words' first pieces, mean over tokens
    rank: Float[np.ndarray, "*layers items"]  # of the likeliest of them, 0 is the top, mean over tokens
    share: Float[np.ndarray, "*layers items"]  # of the tokens whose top piece is one of them

    @property
    def anywhere(self) -> Bool[np.ndarray, "*layers items"]:
        """Whether at least one token of the item has one of the pieces on top."""
        return self.share > 0


class LogitLens(NamedTuple):
    """Scores [layers, items] of the words of each item, and of another item's words as the control.

    Layer k is what enters decoder layer k; the last is what leaves the last layer.
    """

    own: LensScores
    control: LensScores


def first_pieces(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Token ids with which any of the words can begin, at the start of a text or after a space.

    A piece that is only the space says nothing about the word and is passed over. Words may share a first
    piece: then the lens cannot tell them apart, and the control shows how often that happens.
    """
    found = []
    for word in words:
        for text in (word, f" {word}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found += [i for i in ids if tokenizer.decode([i]).strip()][:1]
    return sorted(set(found))


class Read(NamedTuple):
    """Logits [S, vocabulary] of the tokens read, their normalisers [S], and the row that each token is of."""

    logits: Float[Tensor, "selected vocabulary"]
    total: Float[Tensor, " selected"]
    row: Int[Tensor, " selected"]
    rows: int


def read_off(logits: Float[Tensor, "batch tokens vocabulary"], where: Bool[Tensor, "batch tokens"]) -> Read:
    """Select the masked tokens' logits and normalise them, once for all words that are looked for."""
    selected = logits[where].float()
    return Read(selected, selected.logsumexp(-1), where.nonzero()[:, 0], len(where))


def lens_scores(read: Read, pieces: Sequence[Sequence[int]]) -> LensScores:
    """Score each row's `pieces` on the logits of its tokens.

    Raises ValueError when rows and pieces are not equally many, or a row has no token or no piece.
    """
    row = read.row
    count = torch.bincount(row, minlength=read.rows)
    if len(pieces) != read.rows or not all(map(len, pieces)) or not count.all():
        raise ValueError("every row of logits needs at least one masked token and at least one piece")
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in pieces], True, padding_value=-1)
    asked = ids.to(row.device)[row]
    own = read.logits.gather(-1, asked.clamp(min=0)).masked_fill(asked < 0, -torch.inf)  # [S, pieces]
    above = read.logits > own.amax(-1, keepdim=True)
    rank = above.view(torch.uint8).sum(-1, dtype=torch.int32)  # vocabularies are large: bytes add up faster
    probability = (own - read.total[:, None]).exp().sum(-1)

    def mean(values: Float[Tensor, " selected"]) -> Float[np.ndarray, " batch"]:
        total = torch.zeros(len(count), dtype=torch.float64, device=values.device)
        return (total.index_add(0, row, values.double()) / count).cpu().numpy()

    return LensScores(mean(probability), mean(rank.float()), mean((rank == 0).float()))


@torch.no_grad()
def logit_lens(
    vlm: VLM,
    pairs: Sequence[Pair],
    words: Words,
    group: str | Group = "image",
    batch_size: int = 32,
    seed: int = 0,
    label: str = "logit lens",
) -> LogitLens:
    """Read every item's `words` off its image tokens (or another group of tokens), at every layer.

    The prompt asks for a description; `words` are from `concept_words`, in the prompt's language. The control
    scores the words of another item that has none of the same words. Raises ValueError when words and
    pairs are not equally many, when there is no control, and where an item has no such tokens.
    """
    if len(words) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs but {len(words)} words: give each pair its own")
    asked = [
        [first_pieces(vlm.tokenizer, said) for said in side] for side in (words, other_words(words, seed))
    ]
    groups = named([group] if isinstance(group, str) else {"tokens": group})
    scores = np.zeros((2, len(LensScores._fields), vlm.n_layers + 1, len(pairs)))

    def work(rows: list[int]) -> Float[np.ndarray, "sides scores layers rows"]:
        inputs: dict[str, Any] = vlm.prepare([pairs[i].ask for i in rows], [pairs[i].image for i in rows])
        run = vlm.record(**inputs)
        tokens = read_tokens(run.inputs, vlm.image_mask(run.inputs, run), rows=rows)
        (where,) = masks(groups, tokens).values()
        layers = []
        for stream in run.resid:
            # Norm and head alone run, on the stream of this layer in place of the last one's.
            hidden = stream.to(run.resid[-1].device)
            logits = vlm.replay(run, start=vlm.n_layers, hidden=hidden).logits
            read = read_off(logits, where)
            layers.append([lens_scores(read, [side[i] for i in rows]) for side in asked])
        return np.array(layers).transpose(1, 2, 0, 3)

    every = list(range(len(pairs)))
    batches = exact_batches(vlm, [every[i : i + batch_size] for i in range(0, len(every), batch_size)])
    for rows, found in progress(backing_off(batches, work), label, len(pairs), lambda done: len(done[0])):
        scores[..., rows] = found
    return LogitLens(*(LensScores(*side) for side in scores))
