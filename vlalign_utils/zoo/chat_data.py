"""Stages `base`, `aligned` and `tuned`: chats about captions and images, with the loss on the answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlalign_utils.data.documents import (
    IGNORE,
    Document,
    caption_document,
    instruction_document,
    targets,
    text_batches,
    text_documents,
)
from vlalign_utils.data.tokenizer import SPECIAL
from vlalign_utils.driver.anatomy import find_anatomy
from vlalign_utils.tuning.train_loop import of_all
from vlalign_utils.zoo.vision_stage import draw

TEXT_ROWS = 0.2  # of the rows of instruction tuning: what keeps the language model's text

Rows = dict[str, Any]  # inputs of the model, and `labels`


class Chatting(nn.Module):
    """The mean cross-entropy of the tokens of answers, over all rows of a batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the model; which of its parts are trained is for the caller to say (`trainable`)."""
        super().__init__()
        self.model = model

    def forward(self, batch: list[Rows]) -> Float[Tensor, ""]:
        """The loss of rows with images and rows without, each in a forward pass of their own."""
        total = of_all(torch.stack([(rows["labels"][:, 1:] != IGNORE).sum() for rows in batch]).sum())
        losses = []
        for rows in batch:
            inputs = {name: value for name, value in rows.items() if name != "labels"}
            logits = self.model(**inputs, use_cache=False).logits
            losses.append(
                F.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(),
                    rows["labels"][:, 1:].flatten(),
                    ignore_index=IGNORE,
                    reduction="sum",
                )
            )
        return torch.stack(losses).sum() / total


class Writer:
    """Writer of chats, with their images, as the inputs of one model."""

    def __init__(self, model: PreTrainedModel, processor: Any, image_text: str) -> None:
        """Write images as the processor's family does."""
        self.processor, self.image_text = processor, image_text
        self.names = find_anatomy(model).input_names()

    def rows(self, documents: list[Document], images: list[np.ndarray] | None = None) -> Rows:
        """Inputs and labels; with `images`, each chat has one.

        Raises ValueError when the processor writes an answer otherwise than the tokenizer does alone.
        """
        texts = [d.text().replace(SPECIAL["image"], self.image_text) for d in documents]
        shown = {} if images is None else {"images": [[Image.fromarray(image)] for image in images]}
        inputs = self.processor(
            text=texts,
            **shown,
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        )
        ids = inputs["input_ids"]
        labels = torch.full_like(ids, IGNORE)
        for row, document in enumerate(documents):
            length = int(inputs["attention_mask"][row].sum())
            wanted = targets(document, self.processor.tokenizer)
            kept = min(len(wanted), length)
            labels[row, length - kept : length] = torch.tensor(wanted[-kept:])
        if not torch.equal(labels[labels != IGNORE], ids[labels != IGNORE]):
            raise ValueError(f"{type(self.processor).__name__} does not write answers as its tokenizer does")
        known = {name: value for name, value in inputs.items() if name in self.names}
        if "token_type_ids" in self.names:  # asked for in training, also where no image is
            known.setdefault("token_type_ids", torch.zeros_like(ids))
        return known | {"labels": labels}


def text_rows(
    writer: Writer, batch_size: int, steps: int, seed: int, first: int = 0, share: slice = slice(None)
) -> Iterator[list[Rows]]:
    """Batches `first` to `steps` of text chats; `share` is the part of the rows that a process takes."""
    for documents in text_batches(batch_size, steps, seed, first):
        yield [writer.rows(documents[share])]


def image_rows(
    stage: str,
    writer: Writer,
    batch_size: int,
    steps: int,
    seed: int,
    first: int = 0,
    share: slice = slice(None),
) -> Iterator[list[Rows]]:
    """Batches `first` to `steps` of chats about images; stage `tuned` mixes in chats about text."""
    make = instruction_document if stage == "tuned" else caption_document
    n_text = round(TEXT_ROWS * batch_size) if stage == "tuned" else 0
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        shown = draw(batch_size - n_text, rng)
        documents = [make(kind, subject, rng) for kind, subject in shown]
        written = text_documents(n_text, int(rng.integers(2**31)), rng)[share]
        images = [kind.render(subject) for kind, subject in shown[share]]
        batch = [writer.rows(documents[share], images)]
        yield batch + ([writer.rows(written)] if written else [])
