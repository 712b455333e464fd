"""Null models of a text: bags of words, which know neither order nor context nor meaning.

Each token id has a random vector of its own, and a text is the mean over its tokens: what two texts share in
this representation they share for holding the same tokens. A statement about meaning has to exceed it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference import token_groups

WIDTH = 512  # of the random vectors: directions of so many numbers are nearly orthogonal


def bag_of_words(
    vlm: VLM, texts: Sequence[str], seed: int = 0, width: int = WIDTH
) -> Float[Tensor, "items {width}"]:
    """Mean of random word vectors over the tokens of each text, those that `collect` pools as "text".

    Args:
        vlm: a model, of which the tokenizer and the template alone are used.
        texts: prompts without an image.
        seed: of the vectors; a token has the same one in every text.
        width: numbers of a vector.

    Raises ValueError as `vlm.prepare` does.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> bags = bag_of_words(load_vlm("zoo/llava"), ["a red circle", "circle red a", "a blue square"])
        >>> bool((bags[0] == bags[1]).all()), bool((bags[0] == bags[2]).all())
        (True, False)
    """
    counts = _counts(vlm, texts)
    known, columns = np.unique([token for one in counts for token in one], return_inverse=True)
    vectors = np.stack([rng(seed, f"word {token}").standard_normal(width) for token in known])
    shares = np.zeros((len(texts), len(known)))
    rows = np.repeat(np.arange(len(texts)), [len(one) for one in counts])
    shares[rows, columns] = [share for one in counts for share in one.values()]
    return torch.from_numpy(shares @ vectors)


def _counts(vlm: VLM, texts: Sequence[str]) -> list[dict[int, float]]:
    """Share of each token id in each text's "text" group."""
    found = []
    for text in texts:
        inputs = vlm.prepare([text])
        tokens = token_groups.read_tokens(inputs, None)
        ids, counts = tokens.ids[token_groups.GROUPS["text"](tokens)].unique(return_counts=True)
        found.append(dict(zip(ids.tolist(), (counts / counts.sum()).tolist(), strict=True)))
    return found
