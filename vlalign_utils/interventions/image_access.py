"""From which layer on the image is needed, and up to which layer it may come late.

Each edit has one layer k as its argument. Images zeroed, frozen or cut off *from k on* cost nothing once the
work on them is done (2601.08151). Images *inserted at k* (2504.19327) are out of reach below k, and enter it
as the connector made them: where that costs nothing, the layers below were not needed for them. Zeroed *in
layer k alone*, image tokens have their own stream again behind it: what is lost is what layer k reads.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import Edit, FreezeTokens, Knockout, Patch
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.interventions.sweep import (
    Edits,
    Mask,
    Positions,
    Span,
    Sweep,
    answered,
    positions,
    replayed,
)

Access = Callable[[Positions, int, int, Tensor], list[Edit]]  # of groups, layer k, n_layers and a zero vector


def _zeroed(group: str) -> Access:
    return lambda at, k, n_layers, zero: [Patch(k, getattr(at, group), zero)]


def _frozen(at: Positions, k: int, n_layers: int, zero: Tensor) -> list[Edit]:
    return [FreezeTokens(k, n_layers - 1, at.image)] if k < n_layers else []


def _cut(at: Positions, k: int, n_layers: int, zero: Tensor) -> list[Edit]:
    return [Knockout(k, n_layers - 1, at.question | at.last, at.image)] if k < n_layers else []


def _inserted(at: Positions, k: int, n_layers: int, zero: Tensor) -> list[Edit]:
    if k == 0:
        return []
    return [FreezeTokens(0, k - 1, at.image), Knockout(0, k - 1, at.question | at.last, at.image)]


def _in_one(run: Run, image: Mask, k: int, zero: Tensor) -> list[Edit]:
    if k == len(run.resid) - 1:
        return []
    return [Patch(k, image, zero), Patch(k + 1, image, run.resid[k + 1])]


FROM: dict[str, Access] = {
    "image zeroed": _zeroed("image"),
    "some image tokens zeroed": _zeroed("some_image"),
    "as many text tokens zeroed": _zeroed("some_text"),
    "image frozen": _frozen,
    "image cut off": _cut,
}
INSERTED = "image inserted"
IN_ONE = "image zeroed in one layer"


def access_sweep(
    vlm: VLM,
    items: Sequence[Item],
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
    *,
    stride: int = 1,
) -> Sweep:
    """Take the image away from each layer on, and let it in at each layer only, on items answered correctly.

    Args:
        vlm: a model with its processor.
        items: questions about images.
        seed: of the groups of tokens that are drawn.
        batch_size: items of one forward.
        label: of the progress bar.
        stride: layers from one k to the next; n_layers, after the last layer, is always among them.

    Returns a `Sweep` whose windows are (k, k) and whose edits are those of FROM, INSERTED and IN_ONE.
    Zeroed is what enters layer k, so that all later layers find nothing of the image; frozen and cut off hold
    up to the last layer; IN_ONE zeroes what enters layer k and gives layer k + 1 what it had. At n_layers
    only an image that is inserted there costs something: it is never seen.

    Raises ValueError where images take no positions, or the model does not allow an edit.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> found = access_sweep(load_vlm("zoo/llava"), load_suite("attributes", 8), stride=4)
        >>> found.windows, bool((found.drop("image inserted")[:, 0] == 0).all())
        ([(0, 0), (4, 4), (8, 8)], True)
    """
    vlm.capabilities().require("image_positions")
    n_layers = vlm.n_layers
    spans: list[Span] = [(k, k) for k in (*range(0, n_layers, stride), n_layers)]
    kept = [items[row] for row in answered(vlm, items, batch_size=batch_size)]
    ways = {**FROM, INSERTED: _inserted}

    def edits(run: Run, batch: Batch) -> Edits:
        at = positions(vlm, run, batch, seed)
        zero = torch.zeros(run.resid[0].shape[-1], dtype=run.resid[0].dtype, device=run.resid[0].device)
        found = {name: [way(at, k, n_layers, zero) for k, _ in spans] for name, way in ways.items()}
        return found | {IN_ONE: [_in_one(run, at.image, k, zero) for k, _ in spans]}

    ways_told = [*ways, IN_ONE]
    return replayed(vlm, kept, ways_told, spans, edits, batch_size, label)
