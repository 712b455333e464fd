"""Which positions matter: every state patched in earnest, against one backward that estimates them all."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.sizes import Size
from benchmarks.timing import Row, measure, ratio, show
from vlalign_utils import Patch, load_vlm
from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.inference.scoring import as_batch
from vlalign_utils.interventions.attribution import attribution_sweep
from vlalign_utils.interventions.sweep import answered
from vlalign_utils.paths import ROOT

WORLD, CHAIN = "things", "smollm"


def rows(size: Size) -> list[Row]:
    """On the real chain, whatever the size: a pair of images whose questions are answered rightly.

    Patches are replays of one recorded forward, which run only what lies behind them. What the estimates are
    worth, their rank correlation with real patches, stands in the chapter on where.
    """
    vlm = load_vlm(ROOT / "zoo" / CHAIN, "tuned", device=size.device)
    pairs = WORLDS[WORLD].minimal_pairs(8, 0, "test")
    (row, *_) = answered(vlm, [pair.item for pair in pairs], [pair.other for pair in pairs])
    own, other = [pairs[row].item], [pairs[row].other]
    given = [replace(pairs[row].other, answer=pairs[row].item.answer)]
    inputs: dict[str, Any] = {**as_batch(vlm, own, [0]).inputs}
    donor: dict[str, Any] = {**as_batch(vlm, given, [0]).inputs}
    tokens = inputs["input_ids"].shape[1]
    places = torch.eye(tokens, dtype=torch.bool, device=vlm.device)[:, None]

    def patched() -> np.ndarray:
        """Logits behind every patch, by slot and position."""
        values = vlm.record(**donor).resid
        run = vlm.record(kv_cache=True, **inputs)
        sets = [[Patch(slot, place, value)] for slot, value in enumerate(values) for place in places]
        found = {i: logits[0, -1].float().cpu().numpy() for i, logits in vlm.replays(run, sets, keep=1)}
        return np.stack([found[i] for i in range(len(sets))])

    ways: dict[str, Callable[[], Any]] = {
        "a patch for every state": patched,
        "attribution patching": lambda: attribution_sweep(vlm, own, other, ()),
    }
    task = f"effect of {(vlm.n_layers + 1) * tokens} states of an image and its question"
    usual, screen = ways
    found = [ratio(task, screen, usual, measure(ways, size.rounds))]
    show(found)
    return found
