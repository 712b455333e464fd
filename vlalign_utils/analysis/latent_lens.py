"""LatentLens: the words in context whose states lie nearest to an image token, and their text layer.

Source: arXiv 2602.00462. Notation: a is an image layer, b a text layer, M the number of words in context.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlalign_utils.analysis.neighbours import standardise
from vlalign_utils.data.concepts import other_words
from vlalign_utils.data.paired import Pair
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference.states import collect
from vlalign_utils.inference.token_groups import Group
from vlalign_utils.inference.word_tokens import spoken, word_list

Features = Literal["raw", "centred", "standardised"]
BLOCK = 1024  # image tokens compared at once
NEIGHBOURS = 5


class WordStates(NamedTuple):
    """Words in context: their states at every text layer, and what each one is."""

    states: Float[Tensor, "layers words d"]
    words: list[str]


class Nearest(NamedTuple):
    """The nearest words of each image token, nearest first."""

    cosine: Float[Tensor, "tokens k"]
    layer: Int[Tensor, "tokens k"]  # of the text
    word: Int[Tensor, "tokens k"]


class LatentLens(NamedTuple):
    """Per image layer a and item, ready to be resampled over items.

    `layers` is the share of the item's tokens whose nearest word comes from text layer b, and `null` the same
    after the image's features have been put in a random order, the same for all tokens: which layer wins when
    nothing is shared. `own` is the share of tokens whose nearest word is one of the item's, `control` that of
    another item's words. `said` are the words that most tokens have among their neighbours, the commonest
    first.
    """

    layers: Float[np.ndarray, "image_layers items text_layers"]
    null: Float[np.ndarray, "image_layers items text_layers"]
    own: Float[np.ndarray, "image_layers items"]
    control: Float[np.ndarray, "image_layers items"]
    said: list[list[tuple[str, ...]]]


def word_states(
    vlm: VLM, captions: Sequence[str], batch_size: int = 64, label: str = "words in context"
) -> WordStates:
    """States of every word of the captions, at its last token: earlier pieces may begin other words too.

    Raises ValueError when a caption has no word that can be found among its tokens.
    """
    states = collect(
        vlm, captions, None, {"words": spoken(vlm.tokenizer, captions)}, batch_size, label, pooling="none"
    )
    words = [word for caption in captions for word in word_list(caption)]
    return WordStates(torch.cat(states["words"], dim=1), words)


def image_states(
    vlm: VLM,
    pairs: Sequence[Pair],
    group: str | Group = "image",
    batch_size: int = 64,
    label: str = "image tokens",
) -> list[Float[Tensor, "layers _ d"]]:
    """States of each image's tokens, when asked for a description. Raises ValueError without any."""
    ask, pictures = [pair.ask for pair in pairs], [pair.image for pair in pairs]
    found = collect(vlm, ask, pictures, {"image": group}, batch_size, label, pooling="none")["image"]
    return list(found)


def nearest_words(
    image: Float[Tensor, "tokens d"], text: Float[Tensor, "layers words d"], k: int = NEIGHBOURS
) -> Nearest:
    """The k states of any text layer with the largest cosine to each image token.

    Features are compared as they are. Raises ValueError unless 1 <= k <= words, and for states that are not
    finite.
    """
    words = text.shape[1]
    if not 1 <= k <= words:
        raise ValueError(f"k is {k}, expected 1..{words}, the number of words")
    if not (image.isfinite().all() and text.isfinite().all()):
        raise ValueError("a state is NaN or infinite: its neighbours are undefined")
    found = []
    # Cosines of states with a large common mean differ in late digits only: float64.
    for tokens in F.normalize(image.double(), dim=-1).split(BLOCK):
        cosines = (tokens @ F.normalize(layer.double(), dim=-1).T for layer in text)
        tops = [one.topk(k, dim=-1) for one in cosines]  # k of each layer hold the k of all
        cosine, at = torch.cat([top.values for top in tops], -1).topk(k, dim=-1)
        word = torch.cat([top.indices for top in tops], -1).gather(-1, at)
        found.append((cosine, at // k, word))
    return Nearest(*(torch.cat(part) for part in zip(*found, strict=True)))


def latent_lens(
    image: Sequence[Float[Tensor, "layers _ d"]],
    text: WordStates,
    names: Sequence[tuple[str, ...]],
    features: Features = "standardised",
    k: int = NEIGHBOURS,
    seed: int = 0,
) -> LatentLens:
    """Compare every image layer with every text layer; `names` are each item's words, of `concept_words`.

    Transformer states share a large mean, which grows with depth and differs between the modalities: with
    features as they are ("raw", as in the paper) it can decide which layer wins. "centred" takes away the
    mean over tokens of each layer, of each modality by itself; "standardised" also gives every feature the
    same spread, so that a few enormous ones do not decide. Neither looks at names. For a mean over the tokens
    that show something give one token per item. Raises ValueError when names and items are not equally many,
    when there is no control, and as `nearest_words`.
    """
    if len(names) != len(image):
        raise ValueError(f"{len(image)} items but {len(names)} names: give each item its own")
    if features not in get_args(Features):
        raise ValueError(f"features is {features!r}, expected one of {', '.join(get_args(Features))}")
    lengths = [item.shape[1] for item in image]
    known = _prepared(text.states, features)
    order = torch.from_numpy(rng(seed, "order of features").permutation(known.shape[-1]))
    asked = [list(names), other_words(names, seed)]
    layers, null, named, said = [], [], [], []
    for a in range(len(image[0])):
        tokens = _prepared(torch.cat([item[a] for item in image])[None], features)[0]
        near = nearest_words(tokens, known, k)
        layers.append(_shares(near.layer[:, 0], lengths, len(known)))
        null.append(_shares(nearest_words(tokens[:, order], known, 1).layer[:, 0], lengths, len(known)))
        items = near.word.split(lengths)
        named.append([_named(items, text.words, side) for side in asked])
        said.append([_most_frequent(item, text.words, k) for item in items])
    own, control = np.array(named).swapaxes(0, 1)
    return LatentLens(np.stack(layers), np.stack(null), own, control, said)


def _prepared(
    states: Float[Tensor, "layers tokens d"], features: Features
) -> Float[Tensor, "layers tokens d"]:
    if features == "raw":
        return states
    return standardise(states) if features == "standardised" else states - states.mean(dim=-2, keepdim=True)


def _shares(
    winner: Int[Tensor, " tokens"], lengths: Sequence[int], layers: int
) -> Float[np.ndarray, "items layers"]:
    won = F.one_hot(winner, layers).double()
    return np.stack([item.mean(dim=0).numpy() for item in won.split(list(lengths))])


def _named(
    items: Sequence[Int[Tensor, "_ k"]], words: Sequence[str], names: Sequence[tuple[str, ...]]
) -> Float[np.ndarray, " items"]:
    return np.array(
        [np.mean([words[i] in own for i in item[:, 0]]) for item, own in zip(items, names, strict=True)]
    )


def _most_frequent(item: Int[Tensor, "_ k"], words: Sequence[str], k: int) -> tuple[str, ...]:
    """Words by the number of tokens that have them among their neighbours; of equals the one met first."""
    met = Counter(word for near in item.tolist() for word in dict.fromkeys(words[i] for i in near))
    return tuple(word for word, _ in met.most_common(k))
