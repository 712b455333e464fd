"""Residual patching: the stream of one run put into another, layer by layer.

Slots count as in a record: slot k enters layer k, slot n_layers leaves the last layer. All answers are read
with their tokens given, so that a patch covers the same tokens in both runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import Patch
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch, as_batch
from vlalign_utils.interventions.sweep import (
    Edits,
    Positions,
    Span,
    Sweep,
    answered,
    positions,
    replayed,
)

WHERE = ("image", "question", "last")


def slots(vlm: VLM) -> list[Span]:
    """Single slots as windows: what enters each layer, and what leaves the last."""
    return [(slot, slot) for slot in range(vlm.n_layers + 1)]


def patch_sweep(
    vlm: VLM,
    items: Sequence[Item],
    donors: Sequence[Image.Image],
    where: Sequence[str] = WHERE,
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
) -> Sweep:
    """Put the residual stream of another image into each layer, at one group of positions at a time.

    On the items answered correctly. `donors[i]` is asked item i's question; `where` names fields of
    Positions. Windows are single layers, and the last one what leaves the last layer. Raises ValueError when
    the donors are not one for each item, or take other numbers of tokens than the items' own images.
    """
    if len(donors) != len(items):
        raise ValueError(f"{len(items)} items but {len(donors)} donors: give one image for each item")
    _check_where(where)
    rows = answered(vlm, items, batch_size=batch_size)
    others = [replace(items[row], image=donors[row]) for row in rows]
    edits = _patches(vlm, others, where, seed)
    return replayed(vlm, [items[row] for row in rows], where, slots(vlm), edits, batch_size, label)


def check_donors(items: Sequence[Item], donors: Sequence[Item], where: Sequence[str]) -> None:
    """Raise ValueError unless donors ask their items' questions with other answers, and `where` is known."""
    if len(donors) != len(items):
        raise ValueError(f"{len(items)} items but {len(donors)} donors: give one donor for each item")
    for item, donor in zip(items, donors, strict=True):
        if item.prompt != donor.prompt or item.answer == donor.answer:
            raise ValueError(
                f"the donor of {item.prompt!r} ({item.answer}) asks {donor.prompt!r} ({donor.answer}): "
                "give the same question about an image with another answer"
            )
    _check_where(where)


def _check_where(where: Sequence[str]) -> None:
    unknown = [name for name in where if name not in Positions._fields]
    if unknown:
        raise ValueError(f"where names {unknown[0]!r}, expected some of {', '.join(Positions._fields)}")


def _patches(
    vlm: VLM, others: Sequence[Item], where: Sequence[str], seed: int
) -> Callable[[Run, Batch], Edits]:
    """Patches from the same items with other images."""

    def edits(run: Run, batch: Batch) -> Edits:
        inputs: dict[str, Any] = as_batch(vlm, others, batch.rows).inputs
        if not torch.equal(inputs["input_ids"], run.inputs["input_ids"]):
            raise ValueError("a donor takes other positions than its item's image: give one of equal size")
        other, at = vlm.record(**inputs), positions(vlm, run, batch, seed)
        return {
            name: [[Patch(k, getattr(at, name), other.resid[k])] for k, _ in slots(vlm)] for name in where
        }

    return edits


@dataclass(frozen=True)
class Exchange:
    """What a patch takes from the answer to an item's image and gives to the answer to its donor's.

    Both sweeps are over the same items, `rows` of those given: `own` reads the item's own answer, `other`
    the donor's, each with its own tokens given.
    """

    rows: list[int]
    own: Sweep
    other: Sweep


def exchange_sweep(
    vlm: VLM,
    items: Sequence[Item],
    donors: Sequence[Item],
    where: Sequence[str] = WHERE,
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
) -> Exchange:
    """`patch_sweep` from donors that are the same questions about other images, with other answers.

    On the items of which both images are answered correctly. The donor's answer, which may have another
    number of tokens, is read from a second run: the item with that answer in place of its own, patched from
    the donor with the same. `own.drop` is the loss, `other.gain` the gain. Raises ValueError as
    `patch_sweep` does, and when a donor asks something else or has the item's answer.
    """
    check_donors(items, donors, where)
    rows = answered(vlm, items, donors, batch_size=batch_size)
    sweeps = []
    for source, what in ((items, "own answer"), (donors, "donor's answer")):
        kept = [replace(items[row], answer=source[row].answer) for row in rows]
        others = [replace(donors[row], answer=source[row].answer) for row in rows]
        edits = _patches(vlm, others, where, seed)
        sweeps.append(replayed(vlm, kept, where, slots(vlm), edits, batch_size, f"{label}, {what}"))
    return Exchange(rows, *sweeps)
