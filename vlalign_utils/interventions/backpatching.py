"""Back-patching: what the image tokens are in a later layer, put back in at an earlier one.

Where an answer gets better, the later state was what the earlier layers could have used: the work on the
image ended too late. Source: Biran et al. 2024, 2406.12775; for images 2506.09047.
"""

from collections.abc import Sequence

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import Patch, check_layer
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.interventions.sweep import Edits, Sweep, positions, replayed

IMAGE, TEXT = "image tokens", "question tokens"


def backpatch_sweep(
    vlm: VLM,
    items: Sequence[Item],
    targets: Sequence[int] = (0,),
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
    *,
    stride: int = 1,
) -> Sweep:
    """Enter each layer of `targets` with the image tokens' stream of slots at or above it, `stride` apart.

    On all items, wrong ones too, which may become right. Windows are (from, to) slots; where they are equal
    nothing changes, and the last slot is always among them. The control is the same on the question's
    tokens. Raises ValueError where images take no positions, IndexError for a layer that is not there.
    """
    vlm.capabilities().require("image_positions")
    for target in targets:
        check_layer(target, "target", 0, vlm.n_layers - 1)
    last = vlm.n_layers
    spans = [(source, target) for target in targets for source in (*range(target, last, stride), last)]

    def edits(run: Run, batch: Batch) -> Edits:
        at = positions(vlm, run, batch, seed)
        return {
            name: [[Patch(target, mask, run.resid[source])] for source, target in spans]
            for name, mask in ((IMAGE, at.image), (TEXT, at.question))
        }

    return replayed(vlm, items, (IMAGE, TEXT), spans, edits, batch_size, label)
