"""Pool the residual stream on the device, inside the hooks of one forward that keeps nothing else.

Slots count as in a record: slot k enters layer k, slot n_layers leaves the last layer.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlalign_utils.driver.anatomy import Anatomy, signature
from vlalign_utils.driver.edits import tokens_first
from vlalign_utils.driver.finite import NotFiniteError, fault
from vlalign_utils.driver.residual_stream import StopForward
from vlalign_utils.inference.token_groups import last_true

Mask = Bool[Tensor, "batch tokens"]
POOLINGS = ("mean", "last", "max", "none")


def check_pooling(pooling: str | Mapping[str, str], groups: Mapping[str, Any]) -> dict[str, str]:
    """The pooling of each group. Raises ValueError for an unknown one and for a group without one."""
    by_group = dict(pooling) if isinstance(pooling, Mapping) else dict.fromkeys(groups, pooling)
    if by_group.keys() != dict(groups).keys():
        raise ValueError(f"pooling is given for {sorted(by_group)}, the groups are {sorted(groups)}")
    for how in by_group.values():
        if how not in POOLINGS:
            raise ValueError(f"unknown pooling {how!r}; expected one of {', '.join(POOLINGS)}")
    return {group: by_group[group] for group in groups}


def pooled_forward(
    anatomy: Anatomy,
    inputs: Mapping[str, Any],
    masks: Mapping[str, Mask],
    pooling: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Float[Tensor, "layers _ d"]]:
    """Run the decoder once and return each group's pooled states, on the CPU.

    There is one row per item, and for pooling "none" one per selected token, item by item. The model's head
    is never executed. Raises ValueError when the stream does not have the masks' shape, when it holds NaN or
    infinity (naming the first part of the model at fault), or a number that `dtype` cannot hold.
    """
    pooler = _Pooler(anatomy, _readers(masks, pooling), tuple(next(iter(masks.values())).shape), dtype)
    with ExitStack() as hooks, torch.no_grad():
        for k, layer in enumerate(anatomy.layers):
            hooks.callback(layer.register_forward_pre_hook(partial(pooler.enter, k), with_kwargs=True).remove)
        hooks.callback(anatomy.layers[-1].register_forward_hook(pooler.leave).remove)
        with suppress(StopForward):
            anatomy.root(**inputs, use_cache=False)
    if pooler.reached <= len(anatomy.layers):
        raise RuntimeError(f"the model did not run its last layer, {len(anatomy.layers) - 1}")
    host = pooler.on_host()
    if not host.isfinite().all():
        raise NotFiniteError(fault(anatomy, inputs) or _too_large(dtype))
    return pooler.result(host)


def _too_large(dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    return f"a state is too large for {kind}: take dtype=torch.bfloat16 or torch.float32"


Reader = Callable[[Float[Tensor, "batch tokens d"]], Float[Tensor, "rows d"]]


def _readers(
    masks: Mapping[str, Mask], pooling: Mapping[str, str]
) -> list[tuple[list[tuple[str, int]], Reader]]:
    """Functions that pool one stream, with the groups whose rows each one gives and their numbers."""
    readers: list[tuple[list[tuple[str, int]], Reader]] = []
    means = [group for group in masks if pooling[group] == "mean"]
    if means:
        stacked = torch.stack([masks[group] for group in means], dim=1)  # [B, G, T]
        readers.append(([(group, len(stacked)) for group in means], partial(_means, stacked, {})))
    for group, mask in masks.items():
        if pooling[group] == "max":
            readers.append(([(group, len(mask))], partial(_maxima, mask)))
        elif pooling[group] in ("last", "none"):
            # Finding positions waits for the device: once here, never in a hook.
            rows, positions = (last_true(mask) if pooling[group] == "last" else mask).nonzero().unbind(-1)
            readers.append(([(group, len(rows))], partial(_selected, rows, positions)))
    return readers


def _means(
    masks: Bool[Tensor, "batch groups tokens"], kept: dict[Any, Any], hidden: Float[Tensor, "batch tokens d"]
) -> Float[Tensor, "rows d"]:
    """Means of all groups by one product with zeros and ones, exact in any dtype, and float32 sums."""
    place = (hidden.device, hidden.dtype)
    narrow = hidden.dtype != torch.float32
    wide = narrow and not _sums_in_float32(*place)
    if place not in kept:
        moved = masks.to(hidden.device)
        kept[place] = moved.to(torch.float32 if wide else hidden.dtype), moved.sum(-1, keepdim=True).float()
    ones, count = kept[place]
    if narrow and not wide:
        sums = torch.bmm(ones, hidden, out_dtype=torch.float32)
    else:
        sums = torch.bmm(ones, hidden.float())
    return (sums / count).transpose(0, 1).flatten(end_dim=1)  # [B, G, D] -> [G * B, D]


@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this device multiplies matrices of this dtype straight into float32."""
    one = torch.ones(1, 16, 16, device=device, dtype=dtype)
    try:
        torch.bmm(one, one, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def _maxima(mask: Mask, hidden: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "rows d"]:
    outside = ~mask.to(hidden.device)[..., None]
    return hidden.masked_fill(outside, -torch.inf).amax(dim=1)


def _selected(
    rows: Tensor, positions: Tensor, hidden: Float[Tensor, "batch tokens d"]
) -> Float[Tensor, "rows d"]:
    return hidden[rows.to(hidden.device), positions.to(hidden.device)]


@dataclass
class _Pooler:
    """Hooks that pool each slot into one buffer on the device."""

    anatomy: Anatomy
    readers: list[tuple[list[tuple[str, int]], Reader]]
    grid: tuple[int, ...]
    dtype: torch.dtype
    reached: int = 0
    buffer: Tensor = field(default_factory=lambda: torch.empty(0))

    def enter(self, k: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pool(k, args[0] if args else kwargs[next(iter(signature(layer).parameters))])

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._pool(len(self.anatomy.layers), output if isinstance(output, Tensor) else output[0])
        raise StopForward

    def _pool(self, slot: int, stream: Tensor) -> None:
        hidden = self._tokens(stream)  # [B, T, D]
        if self.reached == 0:
            rows = sum(n for groups, _ in self.readers for _, n in groups)
            shape = (len(self.anatomy.layers) + 1, rows, hidden.shape[-1])
            self.buffer = torch.empty(shape, dtype=self.dtype, device=hidden.device)
        pooled = torch.cat([read(hidden).to(self.buffer) for _, read in self.readers])
        # A model may skip layers (cross-attention without an image): their slots hold the same stream.
        self.buffer[self.reached : slot + 1] = pooled
        self.reached = slot + 1

    def _tokens(self, stream: Tensor) -> Tensor:
        try:
            batch, tokens = self.grid
            return tokens_first(stream, (batch, tokens)).flatten(start_dim=2)
        except StopIteration:
            found = list(stream.shape)
            raise ValueError(
                f"the residual stream has shape {found}, the token groups [batch, tokens] = {list(self.grid)}"
            ) from None

    def on_host(self) -> Tensor:
        """All rows, by one copy from the device."""
        host = self.buffer
        if host.is_cuda:
            host = torch.empty(self.buffer.shape, dtype=self.dtype, pin_memory=True)
            host.copy_(self.buffer, non_blocking=True)
            torch.cuda.current_stream(self.buffer.device).synchronize()
        return host.cpu()

    def result(self, host: Tensor) -> dict[str, Tensor]:
        """Each group's rows."""
        groups = [group for reader, _ in self.readers for group in reader]
        parts = host.split([n for _, n in groups], dim=1)
        return {name: part for (name, _), part in zip(groups, parts, strict=True)}
