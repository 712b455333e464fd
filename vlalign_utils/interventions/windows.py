"""What breaks when a window of layers may not use the image: tokens frozen, attention cut, and the like."""

from collections.abc import Callable, Sequence

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import CrossOff, Edit, FreezeTokens, Knockout, Revert
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.interventions.patching import patch_sweep
from vlalign_utils.interventions.sweep import (
    Edits,
    Positions,
    Span,
    Sweep,
    answered,
    positions,
    replayed,
    windows,
)

__all__ = [
    "CROSS",
    "FREEZES",
    "ROUTES",
    "Intervention",
    "Positions",
    "Sweep",
    "interventions",
    "patch_sweep",
    "positions",
    "reverts",
    "sweep",
    "sweep_spans",
    "windows",
]

Intervention = Callable[[Positions, int, int], Edit | None]  # None where the window has nothing to edit

FREEZES: dict[str, Intervention] = {
    "all image tokens": lambda at, first, last: FreezeTokens(first, last, at.image),
    "some image tokens": lambda at, first, last: FreezeTokens(first, last, at.some_image),
    "as many text tokens": lambda at, first, last: FreezeTokens(first, last, at.some_text),
}
ROUTES: dict[str, Intervention] = {
    "image to question": lambda at, first, last: Knockout(first, last, at.question, at.image),
    "image to last": lambda at, first, last: Knockout(first, last, at.last, at.image),
    "image to words": lambda at, first, last: Knockout(first, last, at.question | at.last, at.image),
    "question to last": lambda at, first, last: Knockout(first, last, at.last, at.question),
    # No answer position looks at itself or an earlier one; image and question stay in view, and the residual
    # stream carries on. An answer's first token is read from the prompt's last: it is cut from itself alone.
    "last to last": lambda at, first, last: Knockout(first, last, at.last, at.last),
}


def reverts(before: VLM) -> dict[str, Intervention]:
    """The window runs with the weights of another stage of the same model, such as the one before tuning."""
    return {"weights reverted": lambda at, first, last: Revert(first, last, before.layers)}


CROSS = "cross-attention cut"


def interventions(vlm: VLM) -> dict[str, Intervention]:
    """Ways to keep a window from using the image: where images take no positions, only to cut them off.

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


def sweep(
    vlm: VLM,
    items: Sequence[Item],
    interventions: dict[str, Intervention],
    width: int,
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
    *,
    stride: int = 1,
) -> Sweep:
    """`sweep_spans` over windows of `width` layers, `stride` apart."""
    spans = windows(vlm.n_layers, width, stride)
    return sweep_spans(vlm, items, interventions, spans, seed, batch_size, label)


def sweep_spans(
    vlm: VLM,
    items: Sequence[Item],
    interventions: dict[str, Intervention],
    spans: Sequence[Span],
    seed: int = 0,
    batch_size: int = 64,
    label: str = "batches",
) -> Sweep:
    """Apply each intervention to windows (first, last), inclusive, on the items answered correctly.

    Raises ValueError when the model does not allow an intervention, as its trial found, when no item is
    answered correctly, and when one is scored otherwise than by its answer.
    """
    kept = [items[row] for row in answered(vlm, items, batch_size=batch_size)]

    def edits(run: Run, batch: Batch) -> Edits:
        at = positions(vlm, run, batch, seed)
        return {
            name: [[edit] if (edit := act(at, *span)) else [] for span in spans]
            for name, act in interventions.items()
        }

    return replayed(vlm, kept, list(interventions), spans, edits, batch_size, label)
