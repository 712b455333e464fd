"""What breaks when a window of layers may not use the image: freezing tokens and cutting attention.

Every edit is a replay from the first layer of its window, so the layers below it, and the vision tower,
run once per batch and not once per window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlalign_utils.activations import last_true
from vlalign_utils.edits import Edit, FreezeTokens, Knockout
from vlalign_utils.models import VLM
from vlalign_utils.progress import progress
from vlalign_utils.stats import above_chance, rng
from vlalign_utils.tasks import Batch, Item, answer_scores, batches, evaluate
from vlalign_utils.trace import Run

Mask = Bool[Tensor, "batch tokens"]


class Positions(NamedTuple):
    """Groups of tokens in a batch of questions with their answers appended.

    `last` are the positions that the answer is read from: the prompt's last token and the answer's own.
    `question` is the text between the image and those. `some_image` and `some_text` are random image and
    question tokens, equally many in each item: as many as the smaller of the two groups has.
    """

    image: Mask
    question: Mask
    last: Mask
    some_image: Mask
    some_text: Mask


def positions(vlm: VLM, run: Run, batch: Batch, stream: np.random.Generator) -> Positions:
    """Find the groups. Raises ValueError when an item has no image tokens or no question."""
    image = vlm.image_mask(run.inputs, run)
    if image is None:
        raise ValueError("images take no positions in this model: cut its cross-attention with CrossOff")
    answer = batch.answers >= 0
    prompt = run.inputs["attention_mask"].bool() & ~answer
    end = last_true(prompt)
    after_image = image.cumsum(-1) > 0
    question = prompt & after_image & ~image & ~end
    for name, mask in (("image tokens", image), ("question after its image", question)):
        if not mask.any(dim=-1).all():
            raise ValueError(f"an item of the batch has no {name}: causal sweeps ask questions about images")
    size = torch.minimum(image.sum(-1), question.sum(-1))
    return Positions(image, question, end | answer, _draw(image, size, stream), _draw(question, size, stream))


def _draw(mask: Mask, size: Tensor, stream: np.random.Generator) -> Mask:
    """A random subset of each row's masked positions, `size` of them."""
    score = torch.as_tensor(stream.random(mask.shape), device=mask.device).masked_fill(~mask, -1)
    return score.argsort(dim=-1, descending=True).argsort(dim=-1) < size[:, None]


Intervention = Callable[[Positions, int, int], Edit]

FREEZES: dict[str, Intervention] = {
    "all image tokens": lambda at, first, last: FreezeTokens(first, last, at.image),
    "some image tokens": lambda at, first, last: FreezeTokens(first, last, at.some_image),
    "as many text tokens": lambda at, first, last: FreezeTokens(first, last, at.some_text),
}
ROUTES: dict[str, Intervention] = {
    "image to question": lambda at, first, last: Knockout(first, last, at.question, at.image),
    "image to last": lambda at, first, last: Knockout(first, last, at.last, at.image),
    "question to last": lambda at, first, last: Knockout(first, last, at.last, at.question),
}


def windows(n_layers: int, width: int) -> list[tuple[int, int]]:
    """All windows (first, last) of `width` layers, inclusive.

    Raises ValueError unless 1 <= width <= n_layers.
    """
    if not 1 <= width <= n_layers:
        raise ValueError(f"a window of {width} layers does not fit in a model of {n_layers}")
    return [(first, first + width - 1) for first in range(n_layers - width + 1)]


@dataclass(frozen=True)
class Sweep:
    """Effect of each window on the items answered correctly without any edit.

    `clean` is the probability of the answer without an edit; `prob` and `correct` are with the window edited.
    """

    windows: list[tuple[int, int]]
    chance: Float[np.ndarray, "items"]
    clean: Float[np.ndarray, "items"]
    prob: dict[str, Float[np.ndarray, "items windows"]]
    correct: dict[str, Bool[np.ndarray, "items windows"]]

    def drop(self, name: str) -> Float[np.ndarray, "items windows"]:
        """Loss of probability of the answer: positive when the window was needed."""
        return self.clean[:, None] - self.prob[name]

    def score(self, name: str) -> Float[np.ndarray, "items windows"]:
        """Normalised score per item: its mean is 1 without an edit and 0 at chance."""
        return above_chance(self.correct[name], self.chance)


@torch.no_grad()
def sweep(
    vlm: VLM,
    items: Sequence[Item],
    interventions: dict[str, Intervention],
    width: int,
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
) -> Sweep:
    """Apply each intervention to each window of `width` layers, on the items answered correctly.

    Raises ValueError when no item is answered correctly.
    """
    solved = evaluate(vlm, items, batch_size).correct
    kept = [item for item, right in zip(items, solved, strict=True) if right]
    if not kept:
        raise ValueError(f"the model answers none of the {len(items)} items correctly: nothing can be lost")
    spans, stream = windows(vlm.n_layers, width), rng(seed, "control tokens")
    clean = np.zeros(len(kept))
    prob = {name: np.zeros((len(kept), len(spans))) for name in interventions}
    correct = {name: np.zeros((len(kept), len(spans)), dtype=bool) for name in interventions}
    for batch in progress(list(batches(vlm, kept, batch_size)), label):
        inputs: dict[str, Any] = {**batch.inputs}
        run = vlm.record(**inputs)
        at = positions(vlm, run, batch, stream)
        clean[batch.rows] = answer_scores(run.logits, batch.answers).prob
        for name, intervention in interventions.items():
            for column, (first, last) in enumerate(spans):
                edited = vlm.replay(run, start=first, edits=[intervention(at, first, last)])
                scores = answer_scores(edited.logits, batch.answers)
                prob[name][batch.rows, column] = scores.prob
                correct[name][batch.rows, column] = scores.correct
    return Sweep(spans, np.array([item.chance for item in kept]), clean, prob, correct)
