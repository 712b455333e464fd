"""What becomes of the answers under many edits: all of a batch's are replays of one recorded forward.

The vision tower runs once (`VLM.replays`), layers below an edit not at all, and where an edit lies behind the
image only the tokens after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import CrossOff, Edit, FreezeTokens, Knockout
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import above_chance
from vlalign_utils.inference import token_groups
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import Batch, answer_scores, evaluate, evaluation_batches, tokens_read
from vlalign_utils.inference.token_groups import Tokens

Mask = Bool[Tensor, "batch tokens"]
Span = tuple[int, int]
NEEDS: dict[type, str] = {Knockout: "knockout", FreezeTokens: "freeze", CrossOff: "cross_off"}


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
    image, tokens = _read(vlm, run, batch)
    last = _last(tokens)
    question = token_groups.GROUPS["question"](tokens) & ~last
    for name, mask in (("image tokens", tokens.image), ("question after its image", question)):
        if not (mask.any(dim=-1).all() or (image is None and mask is tokens.image)):
            raise ValueError(f"an item of the batch has no {name}: causal sweeps ask questions about images")
    size = tokens.image.sum(-1).minimum(question.sum(-1))
    some_image, some_text = (
        token_groups.draw(mask, size, batch.rows, seed, f"control {name}")
        for name, mask in (("image", tokens.image), ("text", question))
    )
    return Positions(tokens.image, question, last, some_image, some_text)


def last_positions(vlm: VLM, run: Run, batch: Batch) -> Mask:
    """`Positions.last`, of items without an image too."""
    return _last(_read(vlm, run, batch)[1])


def _read(vlm: VLM, run: Run, batch: Batch) -> tuple[Mask | None, Tokens]:
    image = vlm.image_mask(run.inputs, run)
    return image, token_groups.read_tokens(run.inputs, image, batch.answers >= 0, batch.rows)


def _last(tokens: Tokens) -> Mask:
    return token_groups.GROUPS["last"](tokens) | tokens.answer


def windows(n_layers: int, width: int, stride: int = 1) -> list[Span]:
    """Windows (first, last) of `width` layers, inclusive: every `stride`-th one, and the one at the end.

    Raises ValueError unless 1 <= width <= n_layers and 1 <= stride <= width: each layer is in a window.
    """
    if not 1 <= width <= n_layers:
        raise ValueError(f"a window of {width} layers does not fit in a model of {n_layers}")
    if not 1 <= stride <= width:
        raise ValueError(f"windows of {width} layers that are {stride} apart: the stride is 1 to the width")
    last = n_layers - width
    return [(first, first + width - 1) for first in dict.fromkeys((*range(0, last, stride), last))]


@dataclass(frozen=True)
class Sweep:
    """Effect of each window on each item.

    `clean` is the probability of the answer without an edit, and `solved` whether it is then given; `prob`
    and `correct` are the same with the window edited.
    """

    windows: list[Span]
    chance: Float[np.ndarray, " items"]
    clean: Float[np.ndarray, " items"]
    solved: Bool[np.ndarray, " items"]
    prob: dict[str, Float[np.ndarray, "items windows"]]
    correct: dict[str, Bool[np.ndarray, "items windows"]]

    def drop(self, name: str) -> Float[np.ndarray, "items windows"]:
        """Loss of probability of the answer: positive when the window was needed."""
        return self.clean[:, None] - self.prob[name]

    def gain(self, name: str) -> Float[np.ndarray, "items windows"]:
        """Gain of probability of the answer: positive when the edit helps."""
        return -self.drop(name)

    def score(self, name: str) -> Float[np.ndarray, "items windows"]:
        """Normalised score per item: 1 for a right answer, on average 0 for a guess."""
        return above_chance(self.correct[name], self.chance)


def check_answers(items: Sequence[Item]) -> None:
    """Raise ValueError for an item that is scored otherwise than by its answer."""
    other = next((item for item in items if item.metric != "answer"), None)
    if other is not None:
        raise ValueError(
            f"an item is scored by {other.metric}: sweeps follow the probability of one answer, "
            "so give items of suites whose metric is answer"
        )


def answered(vlm: VLM, *versions: Sequence[Item], batch_size: int = 64) -> list[int]:
    """Rows of the items that the model answers correctly, in each of their versions.

    Raises ValueError when there is none, when versions differ in number, and when an item is scored
    otherwise than by its answer.
    """
    if len({len(items) for items in versions}) != 1:
        raise ValueError(f"versions of {[len(items) for items in versions]} items: give one for each item")
    for items in versions:
        check_answers(items)
    solved = [evaluate(vlm, items, batch_size).correct for items in versions]
    rows = [row for row, right in enumerate(zip(*solved, strict=True)) if all(right)]
    if not rows:
        raise ValueError(
            f"the model answers none of the {len(versions[0])} items correctly: nothing can be lost"
        )
    return rows


Edits = dict[str, list[list[Edit]]]  # by name, a set of edits for each window; an empty one edits nothing


def replayed(
    vlm: VLM,
    items: Sequence[Item],
    names: Sequence[str],
    spans: Sequence[Span],
    edits: Callable[[Run, Batch], Edits],
    batch_size: int = 64,
    label: str = "batches",
) -> Sweep:
    """Apply the edits of each name and span to every item, right or wrong; `batch.rows` index `items`.

    Raises ValueError when the model does not allow an edit, as its trial found, when there is no item, and
    when one is scored otherwise than by its answer.
    """
    if not items:
        raise ValueError("there are no items to edit")
    check_answers(items)
    clean, solved = np.zeros(len(items)), np.zeros(len(items), dtype=bool)
    prob = {name: np.zeros((len(items), len(spans))) for name in names}
    correct = {name: np.zeros((len(items), len(spans)), dtype=bool) for name in names}
    for batch in progress(list(evaluation_batches(vlm, items, batch_size)), label):
        inputs: dict[str, Any] = {**batch.inputs}
        run = vlm.record(kv_cache=True, **inputs)
        by_name = edits(run, batch)
        sets = [by_name[name][column] for name in names for column in range(len(spans))]
        cells = [(name, column) for name in names for column in range(len(spans))]
        vlm.capabilities().require(*sorted({NEEDS[type(e)] for own in sets for e in own if type(e) in NEEDS}))
        keep = tokens_read(batch.answers)
        answers = batch.answers[:, -keep:]
        scores = answer_scores(run.logits[:, -keep:], answers)
        clean[batch.rows], solved[batch.rows] = scores.prob, scores.correct
        for i, logits in vlm.replays(run, sets, keep):
            name, column = cells[i]
            scores = answer_scores(logits, answers)
            prob[name][batch.rows, column] = scores.prob
            correct[name][batch.rows, column] = scores.correct
    chance = np.array([item.chance for item in items])
    return Sweep(list(spans), chance, clean, solved, prob, correct)
