"""Cut attention inside a running model: forbid query-key pairs, switch cross-attention off."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlalign_utils.driver.anatomy import (
    is_causal,
    key_source,
    mask_argument,
    self_attentions,
    signature,
)
from vlalign_utils.driver.edits import CrossOff, Knockout
from vlalign_utils.driver.residual_stream import ResidualStream


@dataclass
class Cuts:
    """Attention cuts of one replay: which layers they concern, and which they took effect in."""

    edits: Sequence[Knockout | CrossOff]
    residual: ResidualStream
    hit: set[int] = field(default_factory=set)
    live: list[nn.Module] = field(default_factory=list)  # modules that must run for the cut to happen
    # Layers that share a mask share its cut version; the mask is kept so that its id stays its own.
    masks: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict)

    def hook(self, hooks: ExitStack) -> None:
        """Hook every attention module concerned. Raises ValueError where a layer cannot be cut."""
        if not self.edits:
            return
        crossing = self.residual.anatomy.cross_attentions()
        for k, layer in enumerate(self.residual.anatomy.layers):
            active = tuple(e for e in self.edits if isinstance(e, Knockout) and e.first <= k <= e.last)
            if active and not self_attentions(layer) and k not in crossing.values():
                raise ValueError(
                    f"Knockout cannot block information in layer {k}: {type(layer).__name__} has no "
                    "attention that takes a mask, its tokens mix in another way"
                )
            for attention in self_attentions(layer) if active else ():
                check_maskable(attention)
                pre_hook = partial(self._forbid, active, k)
                hooks.callback(attention.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
                self.live.append(attention)
        offs = [e for e in self.edits if isinstance(e, CrossOff)]
        for attention, held_by in crossing.items() if offs else ():
            hook = partial(self._silence, offs, held_by)
            hooks.callback(attention.register_forward_hook(hook, with_kwargs=True).remove)
            self.live.append(attention)

    def check(self) -> None:
        """Raise ValueError for an edit that met no attention to cut."""
        for edit in self.edits:
            if self.hit.isdisjoint(range(edit.first, edit.last + 1)):
                kind = "self-attention" if isinstance(edit, Knockout) else "cross-attention"
                raise ValueError(
                    f"{type(edit).__name__}(first={edit.first}, last={edit.last}) changed nothing: "
                    f"no {kind} ran in these layers"
                )

    def _forbid(
        self, active: tuple[Knockout, ...], k: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        call = signature(module).bind_partial(*args, **kwargs)
        if call.arguments.get(key_source(module) or "") is not None:
            return None  # keys from an image or an encoder: they are not at the token positions
        name = mask_argument(module)
        assert name is not None
        mask = call.arguments.get(name)
        causal = is_causal(module, call.kwargs.get("is_causal"))
        shared = (active, id(mask), causal)
        if shared not in self.masks:
            stream = self.residual.resid[-1]
            self.masks[shared] = mask, cut_mask(mask, forbidden_pairs(active), causal, stream)
        self.hit.add(k)
        _, call.arguments[name] = self.masks[shared]
        return call.args, call.kwargs

    def _silence(
        self,
        offs: list[CrossOff],
        held_by: int | None,
        module: nn.Module,
        args: Any,
        kwargs: Any,
        output: Any,
    ) -> Any:
        call = signature(module).bind_partial(*args, **kwargs)
        # Gated blocks may stand between the layers: they belong to the layer they run before.
        layer = len(self.residual.resid) if held_by is None else held_by
        source = call.arguments.get(key_source(module) or "")
        if source is None or not any(e.first <= layer <= e.last for e in offs):
            return None
        self.hit.add(layer)
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])


def check_maskable(attention: nn.Module) -> None:
    """Raise ValueError for an attention implementation that takes no mask of any form."""
    how = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    if how not in (None, "eager", "sdpa"):
        raise ValueError(
            f"Knockout needs eager or sdpa attention, this model was loaded with {how}: "
            'load it with load_vlm(..., attn_implementation="sdpa")'
        )


def forbidden_pairs(active: Sequence[Knockout]) -> Bool[Tensor, "batch 1 queries keys"]:
    """Query-key pairs that any of the knockouts forbids."""
    pairs = [edit.query[:, :, None] & edit.key[:, None, :] for edit in active]
    return torch.stack(pairs).any(dim=0)[:, None]


def cut_mask(
    mask: Tensor | None,
    forbidden: Bool[Tensor, "batch 1 queries tokens"],
    causal: bool,
    stream: Tensor,
) -> Float[Tensor, "batch heads queries tokens"]:
    """Additive mask, valid for eager and sdpa, that also forbids the given pairs.

    The queries are the last of the tokens. Eager attention adds a boolean mask as 0 and 1, and sdpa is
    given none where plain causal, so neither can be kept as it is. Raises ValueError for a mask of another
    shape, and when a query loses all of its keys.
    """
    forbidden = forbidden.to(stream.device)
    queries, tokens = forbidden.shape[-2:]
    if mask is None:
        every = torch.ones(1, 1, queries, tokens, dtype=torch.bool, device=stream.device)
        mask = every.tril(tokens - queries) if causal else every
    if not isinstance(mask, Tensor) or mask.shape[-2:] != (queries, tokens):
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"Knockout needs an attention mask [.., {queries}, {tokens}], the model uses {found}"
        )
    low = torch.finfo(mask.dtype if mask.is_floating_point() else stream.dtype).min
    if not mask.is_floating_point():
        mask = torch.zeros_like(mask, dtype=stream.dtype).masked_fill(~mask.bool(), low)
    seen = mask > low / 2
    lost = (seen.any(-1) & ~(seen & ~forbidden).any(-1)).nonzero()
    if len(lost):
        row, token = lost[0, 0].item(), lost[0, -1].item() + tokens - queries
        raise ValueError(
            f"Knockout leaves token {token} of row {row} without any key to attend to: "
            "keep at least the token itself out of `key`"
        )
    return mask.masked_fill(forbidden, low)
