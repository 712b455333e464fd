"""FLOPs, counted while a model runs: those of any work, and those of one forward by part."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers.pytorch_utils import Conv1D

from vlalign_utils.driver.connector import connector
from vlalign_utils.driver.vlm import VLM

_ATEN = torch.ops.aten
# The attention kernels of a processor, which the counter of torch 2.13 takes for free; it gives the shapes.
_ON_CPU = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
Place = int | Literal["tower", "connector", "head"]


@dataclass(frozen=True)
class Part:
    """FLOPs of one forward through a part of a model, by what is multiplied.

    `weights` with activations; `products` of activations with one another, as in eager attention; `fused`
    the same inside an attention kernel; `adapters` is what LoRA of rank 1 on all its linear maps would add.
    """

    weights: int = 0
    products: int = 0
    fused: int = 0
    adapters: int = 0

    @property
    def forward(self) -> int:
        """FLOPs of the forward."""
        return self.weights + self.products + self.fused

    @property
    def backward(self) -> float:
        """FLOPs of the gradient that passes through: both factors of a product are activations.

        A fused kernel computes the scores, one of its two products, again.
        """
        return self.weights + 2 * self.products + 2.5 * self.fused


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward by part, in the order in which they run.

    `tower` is all that runs before layer 0 but the `connector`; what runs between two layers counts to the
    upper one; `head` is all that runs after the last. `entry` is the lowest layer whose input depends on the
    connector: 0, or the lowest that attends to the image where the image is reached by cross-attention.
    """

    tower: Part
    connector: Part
    layers: tuple[Part, ...]
    head: Part
    entry: int = 0

    @property
    def total(self) -> int:
        """FLOPs of the whole forward."""
        return sum(part.forward for part in (self.tower, self.connector, *self.layers, self.head))


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_ON_CPU)


def step_flops(work: Callable[[], object]) -> int:
    """FLOPs of all matrix products, convolutions and attention that `work` does, forward and backward.

    What the counter of torch does not know, such as kernels for quantised weights, counts nothing.
    """
    with _counter() as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def forward_flops(vlm: VLM, inputs: Mapping[str, Any]) -> Forward:
    """Run the model once on a batch, as `vlm.prepare` gives it, and count its FLOPs by part.

    Raises ValueError when a layer that ran shows no FLOPs: then the counter does not know its operators.
    """
    with ExitStack() as hooks:
        meter = _Meter(hooks.enter_context(_counter()))
        meter.hook(vlm, hooks)
        vlm.model(**inputs, use_cache=False)
        meter.take("head")
    layers = tuple(meter.part(k) for k in range(vlm.n_layers))
    silent = [k for k in sorted(meter.ran) if not layers[k].weights]
    if silent:
        raise ValueError(
            f"layer {silent[0]} ran and shows no FLOPs: the counter of torch does not know its operators; "
            "load the model with plain weights, not quantised ones"
        )
    entry = min(meter.reached, default=0)
    return Forward(meter.part("tower"), meter.part("connector"), layers, meter.part("head"), entry)


@dataclass
class _Meter:
    """Reads the counter when a part begins and when it ends: what was counted in between is the part's."""

    counter: FlopCounterMode
    seen: Counter[Any] = field(default_factory=Counter)
    flops: Counter[tuple[Place, str]] = field(default_factory=Counter)
    ran: set[int] = field(default_factory=set)
    reached: set[int] = field(default_factory=set)  # layers that attended to another sequence
    depth: int = 0  # of the connector's modules inside one another

    def part(self, place: Place) -> Part:
        kinds = ("weights", "products", "fused", "adapters")
        return Part(**{kind: self.flops[place, kind] for kind in kinds})

    def take(self, place: Place) -> None:
        for operator, count in self.counter.flop_counts["Global"].items():
            self.flops[place, _kind(operator)] += count - self.seen[operator]
            self.seen[operator] = count

    def hook(self, vlm: VLM, hooks: ExitStack) -> None:
        for k, layer in enumerate(vlm.layers):
            hooks.callback(layer.register_forward_pre_hook(partial(self._enter, k)).remove)
            hooks.callback(layer.register_forward_hook(partial(self._leave, k)).remove)
            for module in layer.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    hooks.callback(module.register_forward_pre_hook(partial(self._adapt, k)).remove)
        for module in _owners(vlm):
            hooks.callback(module.register_forward_pre_hook(self._bridge).remove)
            hooks.callback(module.register_forward_hook(self._bridged).remove)
        for module, within in vlm.anatomy.cross_attentions().items():
            # Those between the layers do not say where they stand: they may come before layer 0.
            note = partial(self._attended, within or 0)
            hooks.callback(module.register_forward_pre_hook(note).remove)

    def _enter(self, k: int, layer: nn.Module, args: Any) -> None:
        self.take(k if self.ran else "tower")
        self.ran.add(k)

    def _leave(self, k: int, layer: nn.Module, args: Any, output: Any) -> None:
        self.take(k)

    def _adapt(self, k: int, linear: nn.Linear | Conv1D, args: Any) -> None:
        rows = args[0].numel() // args[0].shape[-1]
        self.flops[k, "adapters"] += 2 * rows * sum(linear.weight.shape)

    def _bridge(self, module: nn.Module, args: Any) -> None:
        if not self.depth:
            self.take("tower")
        self.depth += 1

    def _bridged(self, module: nn.Module, args: Any, output: Any) -> None:
        self.depth -= 1
        if not self.depth:
            self.take("connector")

    def _attended(self, k: int, module: nn.Module, args: Any) -> None:
        self.reached.add(k)


def _kind(operator: Any) -> str:
    if "attention" in str(operator):
        return "fused"
    return "products" if operator in (_ATEN.bmm, _ATEN.baddbmm) else "weights"


def _owners(vlm: VLM) -> list[nn.Module]:
    """Modules that hold the connector's parameters themselves; none where no connector is found."""
    try:
        bridge = {id(p) for p in connector(vlm)}
    except ValueError:
        return []
    return [m for m in vlm.model.modules() if any(id(p) in bridge for p in m.parameters(recurse=False))]
