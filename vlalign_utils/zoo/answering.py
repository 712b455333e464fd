"""Questions about images, or texts, as training batches of one model, with the loss on the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign_utils.data.things.questions import Question
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.answers import answer_mask
from vlalign_utils.tuning.train_loop import of_all
from vlalign_utils.zoo.shared_prefix import pack

Rows = dict[str, Tensor]  # inputs of the model, and `answers`


@dataclass(frozen=True)
class Example:
    """Questions with their answers about one image, or, without an image, about nothing but what they say."""

    image: Image.Image | None
    questions: tuple[Question, ...]


class Answering(nn.Module):
    """The mean cross-entropy of the tokens of answers, over all rows of a batch."""

    def __init__(self, vlm: VLM) -> None:
        """Take the model; which of its parts are trained is for the caller to say (`trainable`)."""
        super().__init__()
        self.model: Any = vlm.model

    def forward(self, batch: list[Rows]) -> Float[Tensor, ""]:
        """The loss of rows with images and rows without, each in a forward pass of their own.

        The head, a quarter of the model's arithmetic, is applied to the tokens before answers alone.
        """
        total = of_all(torch.stack([(rows["answers"] >= 0).sum() for rows in batch]).sum())
        losses = []
        for rows in batch:
            inputs = {name: value for name, value in rows.items() if name != "answers"}
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
            target = rows["answers"][:, 1:]
            logits = self.model.get_output_embeddings()(hidden[:, :-1][target >= 0])
            losses.append(F.cross_entropy(logits.float(), target[target >= 0], reduction="sum"))
        return torch.stack(losses).sum() / total


def batch_of(vlm: VLM, examples: Sequence[Example]) -> list[Rows]:
    """Inputs and answers of examples: one part with images, one without, where there are any.

    Turns are written, and end, as the model's own chat template has it.
    """
    seeing = [example for example in examples if example.image is not None]
    blind = [example for example in examples if example.image is None]
    return [_rows(vlm, part) for part in (seeing, blind) if part]


def _rows(vlm: VLM, examples: Sequence[Example]) -> Rows:
    asked = [(e.image, question) for e in examples for question in e.questions]
    prompts, answers = [question.prompt for _, question in asked], [question.answer for _, question in asked]
    images = [image for image, _ in asked if image is not None] or None
    inputs = vlm.prepare(prompts, images, answers)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    said = ids.masked_fill(~answer_mask(vlm, inputs, prompts, images, answers), -1)
    each = iter(
        (own[kept].tolist(), answer[kept].tolist()) for own, answer, kept in zip(ids, said, real, strict=True)
    )
    packed = pack([[next(each) for _ in e.questions] for e in examples], vlm.tokenizer.pad_token_id)
    rows = {"input_ids": packed.ids, "position_ids": packed.positions, "answers": packed.answers}
    rows["attention_mask"] = packed.mask(vlm.model.dtype)
    if images is not None:
        counts = torch.tensor([len(e.questions) for e in examples])
        rows["pixel_values"] = inputs["pixel_values"][counts.cumsum(0) - counts]
    return rows
