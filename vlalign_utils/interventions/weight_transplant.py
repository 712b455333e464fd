"""Weight transplant and revert: which layers' change of weights makes the difference between two stages?

Layers of a donor stand in a receiver: `tuned` layers in the `aligned` model are a transplant, `aligned`
layers in the `tuned` model a revert. All else stays the receiver's own: the vision tower is the same in all
stages of a chain, but the connector, embeddings, last norm and head are not, and a receiver with all of the
donor's layers is therefore still not the donor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import check_layer, check_same_layers
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import Interval, bootstrap_ratio
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import Scores, evaluate
from vlalign_utils.interventions.sweep import windows

Layers = tuple[int, ...]


@contextmanager
def transplanted(vlm: VLM, donor: VLM, layers: Sequence[int]) -> Iterator[VLM]:
    """Run the body with the donor's weights in these decoder layers; the own ones come back bit by bit.

    Raises IndexError for a layer that is not there, and ValueError when the donor is no other stage of the
    same model.
    """
    for k in layers:
        check_layer(k, "layer", 0, vlm.n_layers - 1)
    check_same_layers(vlm.layers, donor.layers, layers)
    own = [(vlm.layers[k].state_dict(keep_vars=True), donor.layers[k].state_dict()) for k in layers]
    before = [{name: value.detach().clone() for name, value in held.items()} for held, _ in own]
    try:
        for held, given in own:
            _copy(held, given)
        yield vlm
    finally:
        for (held, _), kept in zip(own, before, strict=True):
            _copy(held, kept)


@torch.no_grad()
def _copy(held: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> None:
    for name, value in held.items():
        value.copy_(given[name])


def layer_sets(n_layers: int, width: int, stride: int = 1) -> dict[str, list[Layers]]:
    """Sets of layers by how they are chosen; the cumulative ones begin with none and end with all.

    Windows are `stride` layers apart, and so many are added to the cumulative sets at a time.
    """
    every = tuple(range(n_layers))
    counts = [*range(0, n_layers, stride), n_layers]
    return {
        "cumulative from the bottom": [every[:count] for count in counts],
        "cumulative from the top": [every[n_layers - count :] for count in counts],
        "window": [every[first : last + 1] for first, last in windows(n_layers, width, stride)],
        "single layer": [(k,) for k in every],
    }


@dataclass(frozen=True)
class Transplants:
    """Scores per item of the receiver with each set of the donor's layers, and of both as they are."""

    layers: list[Layers]
    correct: Float[np.ndarray, "items sets"]
    prob: Float[np.ndarray, "items sets"]
    receiver: Scores
    donor: Scores


def transplant_sweep(
    receiver: VLM,
    donor: VLM,
    items: Sequence[Item],
    sets: Sequence[Layers],
    batch_size: int = 64,
    label: str = "sets of layers",
) -> Transplants:
    """Score the items, by their own metric, with each set of the donor's layers in the receiver.

    Every set is a plain evaluation of the model with those weights. Raises as `transplanted` does.
    """
    for chosen in sets:
        check_same_layers(receiver.layers, donor.layers, chosen)
    ends = [evaluate(vlm, items, batch_size) for vlm in (receiver, donor)]
    found: dict[Layers, Scores] = {(): ends[0]}  # sets come up more than once: each is scored once
    for chosen in progress(list(dict.fromkeys(s for s in sets if s)), label):
        with transplanted(receiver, donor, chosen):
            found[chosen] = evaluate(receiver, items, batch_size)
    correct, prob = (
        np.stack([getattr(found[chosen], field) for chosen in sets], axis=1) for field in ("correct", "prob")
    )
    return Transplants(list(sets), correct, prob, *ends)


def recovered(
    scores: Float[np.ndarray, "items sets"],
    before: Float[np.ndarray, " items"],
    after: Float[np.ndarray, " items"],
    seed: int = 0,
) -> list[Interval]:
    """(s - s_before) / (s_after - s_before) for each set, over means, with its bootstrap interval over items.

    0 is the model before tuning and 1 the one after, for transplant and revert alike. Raises ValueError when
    `after` is not clearly above `before`.
    """
    return [bootstrap_ratio(column - before, after - before, seed) for column in scores.T]
