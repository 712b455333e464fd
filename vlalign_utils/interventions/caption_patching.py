"""Residual patching between an image and its caption: where are their states the same?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import Patch, tokens_first
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference.scoring import Batch, as_batch
from vlalign_utils.interventions.patching import slots
from vlalign_utils.interventions.sweep import Edits, Sweep, answered, last_positions, replayed

DIRECTIONS = ("caption into image", "image into caption")


def caption_sweep(
    vlm: VLM, items: Sequence[Item], seed: int = 0, batch_size: int = 64, label: str = "batches"
) -> dict[str, Sweep]:
    """Put the state that answers about a caption where its image is asked about, and back.

    On the items answered correctly both ways. Images and captions take different numbers of positions, so
    only `last` is patched: the prompt's last token and the answer's own, which are the same in both. Each
    direction, named as in DIRECTIONS, is a sweep of "own", the item's own caption version, and "another", the
    control: the same answer read with the state of another item with a different answer. Where "own" loses
    nothing and "another" does, the states are interchangeable. Raises ValueError when all items have the
    same answer.
    """
    captioned = [item.caption_version() for item in items]
    rows = answered(vlm, items, captioned, batch_size=batch_size)
    images, captions = ([version[row] for row in rows] for version in (items, captioned))
    control = _others(images, seed)
    found = {}
    for name, receivers, givers in zip(DIRECTIONS, (images, captions), (captions, images), strict=True):
        sources = {
            kind: [replace(givers[g], answer=receivers[i].answer) for i, g in enumerate(chosen)]
            for kind, chosen in (("own", range(len(rows))), ("another", control))
        }
        edits = _last_patches(vlm, sources)
        found[name] = replayed(
            vlm, receivers, list(sources), slots(vlm), edits, batch_size, f"{label}, {name}"
        )
    return found


def _others(items: Sequence[Item], seed: int) -> list[int]:
    """For each item the row of a random one with another answer."""
    stream = rng(seed, "other items")
    found = []
    for item in items:
        rows = [row for row, other in enumerate(items) if other.answer != item.answer]
        if not rows:
            raise ValueError(f"all items answered have the answer {item.answer!r}: no control can be drawn")
        found.append(int(stream.choice(rows)))
    return found


def _last_patches(vlm: VLM, sources: Mapping[str, Sequence[Item]]) -> Callable[[Run, Batch], Edits]:
    def edits(run: Run, batch: Batch) -> Edits:
        at = last_positions(vlm, run, batch)
        found: Edits = {}
        for name, givers in sources.items():
            given = as_batch(vlm, givers, batch.rows)
            inputs: dict[str, Any] = given.inputs
            other = vlm.record(**inputs)
            there = last_positions(vlm, other, given)
            if not torch.equal(at.sum(-1), there.sum(-1)):
                raise ValueError("an answer takes other tokens after a caption than after an image")
            # One row per masked token, item by item: in the same order on both sides.
            found[name] = [
                [Patch(k, at, tokens_first(other.resid[k], other.grid)[there])] for k, _ in slots(vlm)
            ]
        return found

    return edits
