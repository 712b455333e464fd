"""Stage `vision`: a CLIP model trained contrastively on pictures and captions, and on things and phrases.

The usual contrastive loss only asks that the class token knows the caption. The language model reads the
patches, so each thing's patches, averaged over its quadrant, are matched with the thing's phrase as well.
Colour and size alone nearly tell the things of a batch apart, and form, the hardest to see, would be left
out: in most batches the phrases name nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedTokenizerBase

from vlalign_utils.data.language import LANGUAGES, attribute, caption, word
from vlalign_utils.data.render import SIDE
from vlalign_utils.data.world import COLUMNS, DIGITS, ROWS, Thing
from vlalign_utils.zoo.pictures import Pictures

DIGIT_ROWS = 0.25  # of a batch
FORM_ONLY = 0.7  # of the batches


@dataclass(frozen=True, slots=True)
class VisionBatch:
    """Pictures with captions; regions (sets of patches of one picture) with phrases."""

    pixels: Float[Tensor, "pictures 3 48 48"]
    captions: list[str]
    region_picture: list[int]
    region_patches: Bool[Tensor, "regions patches"]
    phrases: list[str]  # each once
    match: Bool[Tensor, "regions phrases"]  # the phrase says what the region shows, in either language


def vision_batches(
    pictures: Pictures, patch: int, batch_size: int, steps: int, seed: int, first: int = 0
) -> Iterator[VisionBatch]:
    """Batches `first` to `steps`; the same step always gets the same batch."""
    n_digits = round(DIGIT_ROWS * batch_size)
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(pictures.scenes), size=batch_size - n_digits).tolist()
        alone = rng.integers(len(pictures.digits), size=n_digits).tolist()
        names = ("form",) if rng.random() < FORM_ONLY else ("size", "colour", "form")
        captions, owner, masks, concepts = [], [], [], []
        phrases: dict[str, tuple[str, ...]] = {}
        for i, row in enumerate(rows):
            language = LANGUAGES[rng.integers(2)]
            captions.append(caption(pictures.scenes[row], language, rng=rng))
            for thing in pictures.scenes[row].things:
                owner.append(i)
                masks.append(_quadrant(thing, patch))
                concepts.append(tuple(attribute(thing, name) for name in names))
                phrases[_phrase(concepts[-1], rng)] = concepts[-1]
        for i, digit in enumerate(alone, len(rows)):
            name = DIGITS[pictures.digits[digit]]
            captions.append(word(name, LANGUAGES[rng.integers(2)]))
            owner.append(i)
            masks.append(np.ones((SIDE // patch) ** 2, dtype=bool))
            concepts.append((name,))
            phrases[_phrase(concepts[-1], rng)] = concepts[-1]
        pixels = pictures.normalised([*rows, *(len(pictures.scenes) + d for d in alone)])
        match = torch.tensor([[shown == said for said in phrases.values()] for shown in concepts])
        yield VisionBatch(pixels, captions, owner, torch.from_numpy(np.stack(masks)), list(phrases), match)


def _quadrant(thing: Thing, patch: int) -> np.ndarray:
    side = SIDE // patch
    half = side // 2
    mask = np.zeros((side, side), dtype=bool)
    top, left = ROWS.index(thing.row) * half, COLUMNS.index(thing.column) * half
    mask[top : top + half, left : left + half] = True
    return mask.ravel()


def _phrase(words: tuple[str, ...], rng: np.random.Generator) -> str:
    language = LANGUAGES[rng.integers(2)]
    return " ".join(word(words[i], language) for i in rng.permutation(len(words)))


def embed_text(
    model: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> Float[Tensor, "texts dim"]:
    """Mean-pooled text features, projected and of unit length."""
    rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    states = model.text_model(
        input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]
    ).last_hidden_state
    weight = rows["attention_mask"].unsqueeze(-1).float()
    pooled = (states * weight).sum(1) / weight.sum(1)
    return F.normalize(model.text_projection(pooled), dim=-1)


def contrastive_loss(
    model: CLIPModel, tokenizer: PreTrainedTokenizerBase, batch: VisionBatch
) -> Float[Tensor, ""]:
    """Mean of the caption loss (class token) and the phrase loss (patches of one thing)."""
    vision = model.vision_model(pixel_values=batch.pixels)
    patches = vision.last_hidden_state[:, 1:][batch.region_picture]  # [regions, patches, D]
    weight = batch.region_patches.unsqueeze(-1).float()
    regions = model.vision_model.post_layernorm((patches * weight).sum(1) / weight.sum(1))
    images, things = (
        F.normalize(model.visual_projection(x), dim=-1) for x in (vision.pooler_output, regions)
    )
    texts = embed_text(model, tokenizer, batch.captions + batch.phrases)
    n = len(batch.captions)
    scale = model.logit_scale.exp().clamp(max=100)
    return 0.5 * (
        _matched(scale * images @ texts[:n].T, torch.eye(n, dtype=torch.bool))
        + _matched(scale * things @ texts[n:].T, batch.match)
    )


def _matched(
    logits: Float[Tensor, "rows columns"], positive: Bool[Tensor, "rows columns"]
) -> Float[Tensor, ""]:
    """Symmetric contrastive loss; the positives of a row, or of a column, share its target equally."""
    sides = ((logits, positive.float()), (logits.T, positive.T.float()))
    rows, columns = (
        -(target / target.sum(1, keepdim=True) * F.log_softmax(x, dim=1)).sum(1).mean() for x, target in sides
    )
    return 0.5 * (rows + columns)
