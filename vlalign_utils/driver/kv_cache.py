"""Keys and values of a recorded forward, so that later tokens can run alone and still see the earlier ones.

An attention module of transformers hands its keys and values to `past_key_values.update` and attends to
what comes back. Giving it an object of our own there records them, or puts recorded ones before its own.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from vlalign_utils.driver.anatomy import (
    cache_argument,
    is_causal,
    key_source,
    mask_argument,
    self_attentions,
    signature,
)


@dataclass(frozen=True)
class AttentionRecord:
    """Keys, values and mask of one attention module, for all tokens of a batch."""

    key: Tensor  # [batch, heads, tokens, width of a head]
    value: Tensor
    mask: Any  # as the module was given it: additive, boolean or None
    causal: bool


@dataclass
class KVCache:
    """Keys and values of every self-attention of a forward, by module, with the weights of `made_by`."""

    made_by: tuple[int, ...] = ()
    seen: dict[nn.Module, AttentionRecord] = field(default_factory=dict)

    def hook(self, layers: nn.ModuleList, hooks: ExitStack) -> None:
        """Record every self-attention of the layers. Raises ValueError for one that takes no cache."""
        for k, layer in enumerate(layers):
            modules = self_attentions(layer)
            if not modules:
                raise ValueError(f"layer {k} mixes tokens in another way than attention")
            for module in modules:
                if cache_argument(module) is None:
                    raise ValueError(f"{type(module).__name__} of layer {k} takes no cache")
                hooks.callback(module.register_forward_pre_hook(self._called, with_kwargs=True).remove)

    def _called(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = signature(module).bind_partial(*args, **kwargs)
        if call.arguments.get(key_source(module) or "") is not None:
            return None  # keys of an image or an encoder: they are the same for every edit
        mask = call.arguments.get(mask_argument(module) or "")
        causal = is_causal(module, call.kwargs.get("is_causal"))
        name = cache_argument(module)
        assert name is not None
        call.arguments[name] = _RecordingCache(partial(self._note, module, mask, causal))
        return call.args, call.kwargs

    def _note(self, module: nn.Module, mask: Any, causal: bool, key: Tensor, value: Tensor) -> None:
        if module in self.seen:
            raise ValueError(f"{type(module).__name__} makes keys more than once in a forward")
        self.seen[module] = AttentionRecord(key, value, mask, causal)


@dataclass(frozen=True)
class _RecordingCache:
    """Cache that records the keys and values it is given and returns them alone."""

    note: Any

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.note(key, value)
        return key, value


@dataclass(frozen=True)
class PrefixKVCache:
    """Cache with recorded keys and values of the first `cut` tokens, which come before new ones."""

    seen: AttentionRecord
    cut: int

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, the recorded ones repeated for each edit set."""
        return self._after(self.seen.key, key), self._after(self.seen.value, value)

    def _after(self, recorded: Tensor, new: Tensor) -> Tensor:
        batch = recorded.shape[0]
        after = new.unflatten(0, (-1, batch))
        before = recorded[None, ..., : self.cut, :].expand(len(after), *[-1] * recorded.ndim)
        return torch.cat([before, after], dim=-2).flatten(end_dim=1)


def weights_now(layers: nn.ModuleList) -> tuple[int, ...]:
    """Count how often each weight of the layers was changed in place: other counts mean other weights."""
    return tuple(parameter._version for parameter in layers.parameters())


def visible(seen: AttentionRecord, tokens: int) -> Bool[Tensor, "batch tokens tokens"] | None:
    """Keys that each query may see, in any head; None for a mask that is not over the tokens."""
    mask, device = seen.mask, seen.key.device
    if mask is None:
        every = torch.ones(1, tokens, tokens, dtype=torch.bool, device=device)
        return every.tril() if seen.causal else every
    if not isinstance(mask, Tensor) or mask.ndim < 2 or mask.shape[-2:] != (tokens, tokens):
        return None
    seen_by = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
    return seen_by.reshape(-1, *seen_by.shape[-3:]).any(1) if mask.ndim > 2 else seen_by[None]


def largest_cut(keys: KVCache, tokens: int, wanted: int, attended: Tensor | None) -> int:
    """Largest number of tokens, at most `wanted`, none of which sees a later one in any layer.

    Queries that `attended` [batch, tokens] leaves out, padding, do not count: no token sees them. 0 where a
    mask does not say what is seen.
    """
    furthest = torch.arange(tokens)
    done: dict[tuple[int, bool], AttentionRecord] = {}
    for seen in keys.seen.values():
        if (id(seen.mask), seen.causal) in done:  # layers share their masks
            continue
        done[id(seen.mask), seen.causal] = seen
        allowed = visible(seen, tokens)
        if allowed is None:
            return 0
        if attended is not None and attended.shape[-1] == tokens:
            allowed = allowed & attended.bool().to(allowed.device)[:, :, None]
        last = torch.where(allowed.any(0).cpu(), torch.arange(tokens), -1).amax(-1)
        furthest = torch.maximum(furthest, last)
    ahead = furthest.cummax(0).values
    return next((cut for cut in range(wanted, 0, -1) if ahead[cut - 1] < cut), 0)
