"""Short fine-tunes of chosen layers, each from the same weights, which come back when it is over."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from vlalign_utils.models import VLM
from vlalign_utils.progress import progress
from vlalign_utils.stats import rng
from vlalign_utils.tasks import Batch

WARM_UP = 0.1  # share of the steps
_CONNECTOR = re.compile(r"projector|connector|merger|resampler")


@dataclass(frozen=True)
class Strategy:
    """What is trained: decoder layers [first, stop), and the connector or not. All else is frozen."""

    name: str
    first: int
    stop: int
    connector: bool = False


def strategies(n_layers: int, band: tuple[int, int]) -> list[Strategy]:
    """Full tuning, the band [first, stop), and the earliest and latest layers, as many as the band has.

    Only full tuning trains the connector: with nothing trained below it, a band needs no gradient there.
    Raises ValueError when the band is empty or leaves the model.
    """
    first, stop = band
    if not 0 <= first < stop <= n_layers:
        raise ValueError(f"the band [{first}, {stop}) does not fit in a model of {n_layers} layers")
    width = stop - first
    return [
        Strategy("full", 0, n_layers, connector=True),
        Strategy("band", first, stop),
        Strategy("early", 0, width),
        Strategy("late", n_layers - width, n_layers),
    ]


def trained(vlm: VLM, strategy: Strategy) -> list[nn.Parameter]:
    """Parameters that the strategy trains.

    Raises ValueError when there are none, or when no connector is found.
    """
    chosen = [p for layer in vlm.layers[strategy.first : strategy.stop] for p in layer.parameters()]
    if strategy.connector:
        bridge = [p for name, p in vlm.model.named_parameters() if _CONNECTOR.search(name)]
        if not bridge:
            raise ValueError(f"{type(vlm.model).__name__} has no module that is named like a connector")
        chosen += bridge
    if not chosen:
        raise ValueError(f"strategy {strategy.name!r} trains nothing: no layers and no connector")
    return chosen


@dataclass(frozen=True)
class Training:
    """Record of one fine-tune: loss per step, seconds of training, and what was held in memory for it.

    `memory` (bytes) counts activations kept for the backward pass, gradients and optimiser states of one
    step: it is exact and the same on every machine, unlike the process' peak.
    """

    strategy: Strategy
    loss: Float[Tensor, "steps"]
    seconds: float
    parameters: int
    memory: int


@contextmanager
def tune(
    vlm: VLM, strategy: Strategy, batches: Sequence[Batch], steps: int, lr: float, seed: int = 0
) -> Iterator[Training]:
    """Train inside the model on the batches, in seeded order, and give the original weights back at the end.

    `with tune(...) as training:` evaluates the tuned model in its body. AdamW, linear warm-up and decay.
    Strategies that are given the same batches, steps and seed see the same data in the same order.
    """
    parameters = trained(vlm, strategy)
    before = [p.detach().clone() for p in parameters]
    asked = {name: p.requires_grad for name, p in vlm.model.named_parameters()}
    # Autograd keeps nothing for what lies below the lowest trained weight.
    vlm.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield _train(vlm, strategy, parameters, batches, steps, lr, seed)
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(asked[name])


def _train(
    vlm: VLM,
    strategy: Strategy,
    parameters: list[nn.Parameter],
    batches: Sequence[Batch],
    steps: int,
    lr: float,
    seed: int,
) -> Training:
    order = rng(seed, "batch order")
    rounds = [order.permutation(len(batches)) for _ in range(-(-steps // len(batches)))]
    turns = [int(i) for one in rounds for i in one][:steps]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    warm = max(1, round(WARM_UP * steps))
    schedule = LambdaLR(optimiser, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm)))
    count = sum(p.numel() for p in parameters)
    size = sum(p.numel() * p.element_size() for p in parameters)
    memory = 3 * size + _kept_for_backward(vlm, batches[turns[0]])  # gradients and two moments
    losses, start = [], time.perf_counter()
    for turn in progress(turns, f"tune {strategy.name}"):
        loss = answer_loss(vlm, batches[turn])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    # Reading the losses waits for the device, so the seconds hold all of the work.
    curve = torch.stack(losses).cpu()
    return Training(strategy, curve, time.perf_counter() - start, count, memory)


def answer_loss(vlm: VLM, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers' tokens."""
    target = batch.answers[:, 1:]
    logits = vlm.model(**batch.inputs, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits[target >= 0].float(), target[target >= 0])


def _kept_for_backward(vlm: VLM, batch: Batch) -> int:
    """Bytes of activations that autograd keeps in one step; weights are not counted."""
    weights = {p.untyped_storage().data_ptr() for p in vlm.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer_loss(vlm, batch)
    return sum(kept.values())
