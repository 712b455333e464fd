"""Replay of many edit sets of one recorded forward in one batch, computing only what an edit can change.

An edit set joins the batch at the lowest layer that it edits. Only the tokens from its first edited one on
are computed, on the recorded keys and values of those before; sets that share that token run as one batch.
The layers are called as the model called them, and its own final norm and unembedding make the logits.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vlalign_utils.driver.anatomy import (
    Anatomy,
    cache_argument,
    is_causal,
    key_source,
    mask_argument,
    self_attentions,
)
from vlalign_utils.driver.anatomy import signature as signature_of
from vlalign_utils.driver.attention_masks import check_maskable, cut_mask, forbidden_pairs
from vlalign_utils.driver.edits import (
    CrossOff,
    Edit,
    FreezeTokens,
    Knockout,
    Patch,
    Revert,
    first_layer,
)
from vlalign_utils.driver.kv_cache import PrefixKVCache, largest_cut
from vlalign_utils.driver.padding import attended_tokens
from vlalign_utils.driver.recording import Run, replay
from vlalign_utils.driver.residual_stream import with_stream

# Arguments of a layer that hold another sequence: an encoder's, or an image's.
_ELSEWHERE = re.compile(r"encoder|cross|key_value_states|image|vision|pixel")
Logits = Float[Tensor, "batch kept vocabulary"]


@dataclass(frozen=True, eq=False)
class EditSet:
    """Edits of one replay: its number, the layer it joins the batch at, and the first token that runs."""

    index: int
    edits: Sequence[Edit]
    start: int
    cut: int


class NotBatchable(Exception):  # noqa: N818 - the caller has another way
    """Edit sets of this run cannot be computed apart from the model's own loop over its layers."""


def locate(index: int, edits: Sequence[Edit], run: Run, n_layers: int, keep: int | None) -> EditSet:
    """Find where a set of edits begins: its lowest layer, and the first token that it changes."""
    tokens = run.grid[1]
    first = tokens
    for edit in edits:
        changed = getattr(edit, "query", getattr(edit, "mask", None))
        first = min(first, 0 if changed is None else int(changed.any(0).nonzero()[0]))
    # Without recorded keys every token runs; the tokens to be read always do.
    cut = 0 if keep is None or run.kv_cache is None else min(first, tokens - keep)
    return EditSet(index, edits, first_layer(edits, n_layers), cut)


def plan(
    anatomy: Anatomy, run: Run, sets: Sequence[EditSet], budget: int
) -> Iterator[tuple[list[EditSet], bool]]:
    """Group edit sets that share their first token, and whether they can run apart from the model's own loop.

    A group holds at most `budget` tokens, or one set.
    """
    batch, tokens = run.grid
    if run.kv_cache is not None:
        # Padding is told apart without knowing the image: where a model inserts it, all positions count.
        attended = attended_tokens(run.inputs, run.grid, None)
        valid = {cut: largest_cut(run.kv_cache, tokens, cut, attended) for cut in {one.cut for one in sets}}
        sets = [replace(one, cut=valid[one.cut]) for one in sets]
    for cut in sorted({one.cut for one in sets}):
        lowest = first_batchable_layer(anatomy, run, cut)
        alike = [one for one in sets if one.cut == cut]
        alone = [r for r in alike if r.start < lowest or any(isinstance(e, CrossOff) for e in r.edits)]
        yield from (([one], False) for one in alone)
        fit = sorted((one for one in alike if one not in alone), key=lambda one: one.start)
        size = max(1, budget // (batch * (tokens - cut)))
        yield from ((fit[i : i + size], True) for i in range(0, len(fit), size))


def first_batchable_layer(anatomy: Anatomy, run: Run, cut: int) -> int:
    """Lowest layer from which nothing but the layers changes the tokens from `cut` on.

    Number of layers + 1 where that is nowhere so: states shared by layers, several streams side by side.
    """
    n_layers = len(anatomy.layers)
    if any(run.states.values()) or run.resid[0].ndim != 3 or len(run.calls) < n_layers:
        return n_layers + 1
    for k in range(n_layers - 1, -1, -1):
        output = run.outputs[k]
        left = output if isinstance(output, Tensor) else output[0]
        if left is not run.resid[k + 1] and not torch.equal(left[:, cut:], run.resid[k + 1][:, cut:]):
            return k + 1
    return 0


@torch.no_grad()
def replay_alone(anatomy: Anatomy, run: Run, one: EditSet, keep: int | None) -> Logits:
    """Replay one edit set by the model's own loop over its layers, exact for every family."""
    logits = replay(anatomy, run, min(one.start, len(anatomy.layers)), edits=one.edits).logits
    return logits if keep is None else logits[:, -keep:]


@torch.no_grad()
def replay_together(
    anatomy: Anatomy, run: Run, group: Sequence[EditSet], keep: int | None
) -> list[tuple[int, Logits]]:
    """Replay the edit sets of a group in one batch: number and logits of the last `keep` tokens (None: all).

    Raises NotBatchable when the layers cannot be called so.
    """
    batch = run.grid[0]
    batched = _Batched(anatomy, run, group, group[0].cut)
    try:
        with ExitStack() as hooks:
            batched.hook(hooks)
            stream = batched.through_layers()
        batched.check()
        kept = stream if keep is None else stream[:, -keep:]
        logits = replay(anatomy, run, len(anatomy.layers), hidden=kept).logits
    except torch.OutOfMemoryError:
        raise
    # Whatever a layer does not take of what it is given shows that it cannot be called this way.
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as reason:
        raise NotBatchable(f"{type(reason).__name__}: {reason}") from reason
    return list(zip([one.index for one in batched.order], logits.split(batch), strict=True))


def batching_is_exact(anatomy: Anatomy, run: Run, cut: int) -> bool:
    """Check on two edit sets, one changing all tokens from `cut`, that a batch changes no logit."""
    lowest, keep = first_batchable_layer(anatomy, run, cut), run.grid[1] - cut
    if lowest > len(anatomy.layers):
        return False
    stream = run.resid[lowest]
    later = torch.zeros(run.grid, dtype=torch.bool, device=stream.device)
    later[:, cut:] = True
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(2)).to(stream)
    moved = [Patch(lowest, later, stream + size * stream.std() * noise) for size in (0.0, 1.0)]
    sets = [EditSet(i, [edit], lowest, cut) for i, edit in enumerate(moved)]
    try:
        found = replay_together(anatomy, run, sets, keep)
    except NotBatchable:
        return False
    seen = later & attended_tokens(run.inputs, run.grid, None)
    for index, logits in found:
        expected = replay_alone(anatomy, run, sets[index], keep)[seen[:, -keep:]].float()
        tolerance = max(1e-5, 4 * torch.finfo(run.logits.dtype).eps) * expected.abs().max()
        if not bool(((logits[seen[:, -keep:]].float() - expected).abs() <= tolerance).all()):
            return False
    return True


def _from(cut: int, edit: Edit) -> Edit:
    """Restrict an edit to the tokens from `cut` on; the keys of a knockout stay complete."""
    if isinstance(edit, Patch):
        value = edit.value[:, cut:] if edit.value.ndim == 3 else edit.value
        return replace(edit, mask=edit.mask[:, cut:], value=value)
    if isinstance(edit, FreezeTokens):
        return replace(edit, mask=edit.mask[:, cut:])
    return replace(edit, query=edit.query[:, cut:]) if isinstance(edit, Knockout) else edit


@dataclass
class _Batched:
    """One pass of a group of edit sets through the layers."""

    anatomy: Anatomy
    run: Run
    group: Sequence[EditSet]
    cut: int
    order: list[EditSet] = field(default_factory=list)  # sets in the batch so far
    masks: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict)
    fitted: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    layer: int = 0
    hit: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        grid = self.run.grid[0], self.run.grid[1] - self.cut
        edits = {one.index: [_from(self.cut, e) for e in one.edits] for one in self.group}
        self.at_slots = {
            index: [e.begin(grid) for e in own if isinstance(e, Patch | FreezeTokens)]
            for index, own in edits.items()
        }
        self.knockouts = {i: [e for e in own if isinstance(e, Knockout)] for i, own in edits.items()}
        self.reverts = {i: [e for e in own if isinstance(e, Revert)] for i, own in edits.items()}

    def hook(self, hooks: ExitStack) -> None:
        cutting = [e for own in self.knockouts.values() for e in own]
        for k, layer in enumerate(self.anatomy.layers):
            wanted = any(e.first <= k <= e.last for e in cutting)
            if wanted and not self_attentions(layer):
                raise NotBatchable(f"layer {k} mixes tokens in another way than attention")
            for module in self_attentions(layer) if wanted or self.cut else ():
                if wanted:
                    check_maskable(module)
                hooks.callback(module.register_forward_pre_hook(self._attend, with_kwargs=True).remove)

    def check(self) -> None:
        for own in self.knockouts.values():
            for edit in own:
                if self.hit.isdisjoint(range(edit.first, edit.last + 1)):
                    raise NotBatchable("a knockout met no attention")

    def through_layers(self) -> Tensor:
        stream = self.run.resid[0][:0, self.cut :]
        for slot in range(min(one.start for one in self.group), len(self.anatomy.layers) + 1):
            joining = [one for one in self.group if one.start == slot]
            self.order += joining
            stream = torch.cat([stream, *[self.run.resid[slot][:, self.cut :]] * len(joining)])
            stream = self._edited(slot, stream)
            if slot < len(self.anatomy.layers) and self.order:
                stream = self._through(slot, stream)
        return stream

    def _edited(self, slot: int, stream: Tensor) -> Tensor:
        pieces = list(stream.split(self.run.grid[0]))
        changed = False
        for i, one in enumerate(self.order):
            for edit in self.at_slots[one.index]:
                piece = edit(slot, pieces[i])
                changed |= piece is not pieces[i]
                pieces[i] = piece
        return torch.cat(pieces) if changed else stream

    def _through(self, k: int, stream: Tensor) -> Tensor:
        """Run layer k, for the sets with its own weights and for those with another stage's."""
        self.layer = k
        own = self.anatomy.layers[k]
        runs_in = [
            next((e.layers[k] for e in reversed(self.reverts[one.index]) if e.first <= k <= e.last), own)
            for one in self.order
        ]
        if all(module is own for module in runs_in):
            return self._call(own, k, stream)
        pieces = list(stream.split(self.run.grid[0]))
        for module in set(runs_in):
            where = [i for i, chosen in enumerate(runs_in) if chosen is module]
            left = self._call(module, k, torch.cat([pieces[i] for i in where]))
            for i, piece in zip(where, left.split(self.run.grid[0]), strict=True):
                pieces[i] = piece
        return torch.cat(pieces)

    def _call(self, module: nn.Module, k: int, stream: Tensor) -> Tensor:
        count = len(stream) // self.run.grid[0]
        args, kwargs = self.run.calls[k]
        names = list(signature_of(module).parameters)
        args = tuple(self._fit(count, name, value) for name, value in zip(names, args, strict=False))
        kwargs = {name: self._fit(count, name, value) for name, value in kwargs.items()}
        args, kwargs = with_stream(module, args, kwargs, stream)
        output = module(*args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    def _fit(self, count: int, name: str, argument: Any) -> Any:
        """Fit an argument of a layer to the tokens from `cut` on and to `count` edit sets."""

        def fit(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if (id(value), count, name) not in self.fitted:
                axis = _item_axis(value, *self.run.grid)
                fitted = _repeat(self._narrow(value, name, axis), count, axis)
                # The argument is kept with its version, so that its id stays its own.
                self.fitted[id(value), count, name] = value, fitted
            return self.fitted[id(value), count, name][1]

        return pytree.tree_map(fit, argument)

    def _narrow(self, value: Tensor, name: str, items: int | None) -> Tensor:
        """Restrict an argument to the tokens from `cut` on; `items` is the axis of the batch.

        Names tell apart what sizes cannot: another sequence may be as long as the tokens, and a mask's last
        axis counts keys, of which those before are all still there.
        """
        tokens = self.run.grid[1]
        if not self.cut or (_ELSEWHERE.search(name) and "mask" not in name):
            return value
        if "mask" in name:
            over = [value.ndim - 2] if value.ndim > 2 and value.shape[-2] == tokens else []
        else:
            over = [d for d, size in enumerate(value.shape) if size == tokens and d != items]
        if len(over) > 1 and over != [value.ndim - 2, value.ndim - 1]:
            raise NotBatchable(
                f"a layer is given a tensor {list(value.shape)} with more than one axis of tokens"
            )
        return value.narrow(over[0], self.cut, tokens - self.cut) if over else value

    def _attend(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = signature_of(module).bind_partial(*args, **kwargs)
        if call.arguments.get(key_source(module) or "") is not None:
            return None
        name = mask_argument(module)
        assert name is not None
        mask, k, tokens = call.arguments.get(name), self.layer, self.run.grid[1]
        causal = is_causal(module, call.kwargs.get("is_causal"))
        active = tuple(
            tuple(e for e in self.knockouts[one.index] if e.first <= k <= e.last) for one in self.order
        )
        if self.cut:
            assert self.run.kv_cache is not None
            call.arguments[cache_argument(module) or ""] = PrefixKVCache(
                self.run.kv_cache.seen[module], self.cut
            )
        if any(active) or (self.cut and mask is None):
            shared = active, id(mask), causal
            if shared not in self.masks:
                stream, batch = self.run.resid[0], self.run.grid[0]
                nothing = torch.zeros(
                    batch, 1, tokens - self.cut, tokens, dtype=torch.bool, device=stream.device
                )
                forbidden = torch.cat([forbidden_pairs(own) if own else nothing for own in active])
                self.masks[shared] = mask, cut_mask(mask, forbidden.to(stream.device), causal, stream)
            _, call.arguments[name] = self.masks[shared]
        if any(active):
            self.hit.add(k)
        return call.args, call.kwargs


def _item_axis(value: Tensor, batch: int, tokens: int) -> int | None:
    """Axis of a layer's argument that counts the items of the batch; None where all items share it."""
    if value.ndim < 2:
        return None
    over_both = (
        value.ndim > 2 and value.shape[1:3] == (batch, tokens) and value.shape[-2:] != (tokens, tokens)
    )
    if over_both and value.ndim < 5:
        return 1  # several kinds of positions for each item
    return 0 if value.shape[0] == batch else None


def _repeat(value: Tensor, count: int, axis: int | None) -> Tensor:
    """Repeat the items of a batch for each edit set."""
    if count == 1 or axis is None:
        return value
    sizes = [count if d == axis else 1 for d in range(value.ndim)]
    return (
        value.expand(*[count if d == axis else -1 for d in range(value.ndim)])
        if value.shape[axis] == 1
        else value.repeat(*sizes)
    )
