"""Skip the attention or the MLP of a window of layers for the image tokens alone: what works on images there?

The other tokens run as they are, and see the keys and values of the image tokens. Both skipped at once is
almost a freeze: only what a model adds to the stream between layers is kept.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlalign_utils.data.items import Item
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import answer_scores, evaluation_batches, tokens_read
from vlalign_utils.interventions.submodule_removal import PARTS, removed, submodules
from vlalign_utils.interventions.sweep import Mask, Sweep, answered, positions, windows

GROUPS = {"image": "image tokens", "some_image": "some image tokens", "some_text": "as many text tokens"}


def skips(parts: Sequence[str] = ("attention", "MLP")) -> list[str]:
    """Names of the edits of a sweep: each part, skipped for each group of tokens."""
    return [f"{part} skipped, {group}" for part in parts for group in GROUPS.values()]


@torch.no_grad()
def skip_sweep(
    vlm: VLM,
    items: Sequence[Item],
    width: int,
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
    *,
    stride: int = 1,
    parts: Sequence[str] = ("attention", "MLP"),
) -> Sweep:
    """Skip each part for the image tokens in windows of `width` layers, on items answered correctly.

    Args:
        vlm: a model with its processor.
        items: questions about images.
        width: layers of a window.
        seed: of the groups that are drawn, `some_image` and `some_text` of `Positions`: the controls.
        batch_size: items of one forward.
        label: of the progress bar.
        stride: layers from one window to the next.
        parts: keys of `PARTS`.

    Raises ValueError where images take no positions, as `submodules` does, and when no item is answered.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> found = skip_sweep(load_vlm("zoo/llava"), load_suite("attributes", 8), width=4, stride=4)
        >>> found.windows, found.drop("MLP skipped, image tokens").shape[1]
        ([(0, 3), (4, 7)], 2)
    """
    vlm.capabilities().require("image_positions")
    for layer in vlm.layers:
        submodules(layer)
    spans = windows(vlm.n_layers, width, stride)
    kept = [items[row] for row in answered(vlm, items, batch_size=batch_size)]
    clean, solved = np.zeros(len(kept)), np.zeros(len(kept), dtype=bool)
    prob = {name: np.zeros((len(kept), len(spans))) for name in skips(parts)}
    correct = {name: np.zeros((len(kept), len(spans)), dtype=bool) for name in skips(parts)}
    for batch in progress(list(evaluation_batches(vlm, kept, batch_size)), label):
        inputs: dict[str, Any] = {**batch.inputs}
        run = vlm.record(**inputs)
        at, last = positions(vlm, run, batch, seed), slice(-tokens_read(batch.answers), None)
        answers = batch.answers[:, last]
        scores = answer_scores(run.logits[:, last], answers)
        clean[batch.rows], solved[batch.rows] = scores.prob, scores.correct
        for part in parts:
            for group, told in GROUPS.items():
                tokens: Mask = getattr(at, group)
                for column, span in enumerate(spans):
                    with removed(vlm, *span, PARTS[part], tokens):
                        logits = vlm.replay(run, start=span[0]).logits[:, last]
                    scores, name = answer_scores(logits, answers), f"{part} skipped, {told}"
                    prob[name][batch.rows, column] = scores.prob
                    correct[name][batch.rows, column] = scores.correct
    chance = np.array([item.chance for item in kept])
    return Sweep(spans, chance, clean, solved, prob, correct)
