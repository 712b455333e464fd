"""What breaks when a window of layers may not use the image: tokens frozen, attention cut, weights put back.

All edits of a batch are replays of one recorded forward (`VLM.replays`): the vision tower runs once, layers
below an edit not at all, and where an edit lies behind the image only the tokens after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vlalign_utils import groups
from vlalign_utils.edits import CrossOff, Edit, FreezeTokens, Knockout, Patch, Revert
from vlalign_utils.models import VLM
from vlalign_utils.progress import progress
from vlalign_utils.stats import above_chance
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


def positions(vlm: VLM, run: Run, batch: Batch, seed: int = 0) -> Positions:
    """Find the groups; those of image tokens are empty where images take no positions (cross-attention).

    Raises ValueError when an item has no image or no question.
    """
    image = vlm.image_mask(run.inputs, run)
    tokens = groups.read_tokens(run.inputs, image, batch.answers >= 0, batch.rows)
    end = groups.GROUPS["last"](tokens)
    question = groups.GROUPS["question"](tokens) & ~end
    for name, mask in (("image tokens", tokens.image), ("question after its image", question)):
        if not (mask.any(dim=-1).all() or (image is None and mask is tokens.image)):
            raise ValueError(f"an item of the batch has no {name}: causal sweeps ask questions about images")
    size = tokens.image.sum(-1).minimum(question.sum(-1))
    some_image, some_text = (
        groups.draw(mask, size, batch.rows, seed, f"control {name}")
        for name, mask in (("image", tokens.image), ("text", question))
    )
    return Positions(tokens.image, question, end | tokens.answer, some_image, some_text)


Intervention = Callable[[Positions, int, int], Edit | None]  # None where the window has nothing to edit

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


def reverts(before: VLM) -> dict[str, Intervention]:
    """The window runs with the weights of another stage of the same model, such as the one before tuning."""
    return {"weights put back": lambda at, first, last: Revert(first, last, before.layers)}


CROSS = "cross-attention cut"


def interventions(vlm: VLM) -> dict[str, Intervention]:
    """Ways to keep a window from using the picture: where images take no positions, only to cut them off.

    Raises ValueError when the model has neither image tokens nor cross-attention that can be cut.
    """
    if vlm.capabilities().image_positions.works:
        return FREEZES | ROUTES
    vlm.capabilities().require("cross_off")
    held = set(vlm.anatomy.cross_attentions().values())

    def cut(at: Positions, first: int, last: int) -> Edit | None:
        # None: between layers, known only as the model runs.
        return CrossOff(first, last) if held & {None, *range(first, last + 1)} else None

    return {CROSS: cut}


NEEDS: dict[type, str] = {Knockout: "knockout", FreezeTokens: "freeze", CrossOff: "cross_off"}


def windows(n_layers: int, width: int) -> list[tuple[int, int]]:
    """All windows (first, last) of `width` layers, inclusive.

    Raises ValueError unless 1 <= width <= n_layers.
    """
    if not 1 <= width <= n_layers:
        raise ValueError(f"a window of {width} layers does not fit in a model of {n_layers}")
    return [(first, first + width - 1) for first in range(n_layers - width + 1)]


Edits = dict[str, list[Edit | None]]


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

    Raises ValueError when the model does not allow an intervention, as its trial found, when no item is
    answered correctly, and when one is scored otherwise than by its answer.
    """
    spans = windows(vlm.n_layers, width)

    def edits(at: Positions, run: Run, batch: Sequence[Item]) -> Edits:
        return {name: [act(at, *span) for span in spans] for name, act in interventions.items()}

    return _sweep(vlm, items, list(interventions), spans, edits, seed, batch_size, label)


def patch_sweep(
    vlm: VLM,
    items: Sequence[Item],
    donors: Sequence[Image.Image],
    where: Sequence[str] = ("image", "question", "last"),
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
) -> Sweep:
    """Put the residual stream of another picture into each layer, at one group of positions at a time.

    `donors[i]` is asked item i's question; `where` names fields of Positions. Windows are single layers,
    and the last one what leaves the last layer. Raises ValueError when the donors are not one for each
    item, or take other numbers of tokens than the items' own pictures.
    """
    if len(donors) != len(items):
        raise ValueError(f"{len(items)} items but {len(donors)} donors: give one picture for each item")
    unknown = [name for name in where if name not in Positions._fields]
    if unknown:
        raise ValueError(f"where names {unknown[0]!r}, expected some of {', '.join(Positions._fields)}")
    spans = [(slot, slot) for slot in range(vlm.n_layers + 1)]
    donor_of = {id(item): donor for item, donor in zip(items, donors, strict=True)}

    def edits(at: Positions, run: Run, batch: Sequence[Item]) -> Edits:
        pictures = [donor_of[id(item)] for item in batch]
        prompts, answers = [item.prompt for item in batch], [item.answer for item in batch]
        inputs: dict[str, Any] = vlm.prepare(prompts, pictures, answers)
        if not torch.equal(inputs["input_ids"], run.inputs["input_ids"]):
            raise ValueError("a donor takes other positions than its item's picture: give one of equal size")
        other = vlm.record(**inputs)
        return {name: [Patch(k, getattr(at, name), other.resid[k]) for k, _ in spans] for name in where}

    return _sweep(vlm, items, list(where), spans, edits, seed, batch_size, label)


def _sweep(
    vlm: VLM,
    items: Sequence[Item],
    names: list[str],
    spans: list[tuple[int, int]],
    edits: Callable[[Positions, Run, Sequence[Item]], Edits],
    seed: int,
    batch_size: int,
    label: str,
) -> Sweep:
    other = next((item for item in items if item.metric != "answer"), None)
    if other is not None:
        raise ValueError(
            f"an item is scored by {other.metric}: sweeps follow the probability of one answer, "
            "so give items of suites whose metric is answer"
        )
    solved = evaluate(vlm, items, batch_size).correct
    kept = [item for item, right in zip(items, solved, strict=True) if right]
    if not kept:
        raise ValueError(f"the model answers none of the {len(items)} items correctly: nothing can be lost")
    clean = np.zeros(len(kept))
    prob = {name: np.zeros((len(kept), len(spans))) for name in names}
    correct = {name: np.zeros((len(kept), len(spans)), dtype=bool) for name in names}
    for batch in progress(list(batches(vlm, kept, batch_size)), label):
        inputs: dict[str, Any] = {**batch.inputs}
        run = vlm.record(keys=True, **inputs)
        by_name = edits(positions(vlm, run, batch, seed), run, [kept[row] for row in batch.rows])
        vlm.capabilities().require(
            *{NEEDS[type(e)] for own in by_name.values() for e in own if type(e) in NEEDS}
        )
        # Only the answer's tokens and the one before them are read.
        keep = int((batch.answers >= 0).sum(-1).max()) + 1
        answers = batch.answers[:, -keep:]
        clean[batch.rows] = answer_scores(run.logits[:, -keep:], answers).prob
        cells = [(name, column) for name in names for column in range(len(spans))]
        sets = [[edit] if (edit := by_name[name][column]) else [] for name, column in cells]
        for i, logits in vlm.replays(run, sets, keep):
            name, column = cells[i]
            scores = answer_scores(logits, answers)
            prob[name][batch.rows, column] = scores.prob
            correct[name][batch.rows, column] = scores.correct
    return Sweep(spans, np.array([item.chance for item in kept]), clean, prob, correct)
