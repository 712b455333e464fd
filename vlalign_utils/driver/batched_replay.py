"""Many edits of one recorded forward at once, without computing again what none of them can change.

Each row is one set of edits. A row joins at the lowest layer that it edits; only the tokens from its first
edited one on are computed, on the recorded keys and values of those before; rows that share that token run
as one batch. The layers are called as the model called them, and its own tail makes the logits.
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
from vlalign_utils.driver.kv_cache import Before, largest_cut
from vlalign_utils.driver.padding import attended_tokens
from vlalign_utils.driver.recording import Run, replay
from vlalign_utils.driver.residual_stream import with_stream

# Arguments of a layer that hold another sequence: an encoder's, or an image's.
_ELSEWHERE = re.compile(r"encoder|cross|key_value_states|image|vision|pixel")
Logits = Float[Tensor, "batch kept vocabulary"]


@dataclass(frozen=True, eq=False)
class Row:
    """One set of edits: which it is, the layer it joins at, and the first token it changes."""

    index: int
    edits: Sequence[Edit]
    start: int
    cut: int


class Unfit(Exception):  # noqa: N818 - the caller has another way
    """Rows of this run cannot be computed apart from the model's own loop over its layers."""


def as_row(index: int, edits: Sequence[Edit], run: Run, n_layers: int, keep: int | None) -> Row:
    """Find where a set of edits begins: its lowest layer, and its first token that changes."""
    tokens = run.grid[1]
    first = tokens
    for edit in edits:
        changed = getattr(edit, "query", getattr(edit, "mask", None))
        first = min(first, 0 if changed is None else int(changed.any(0).nonzero()[0]))
    # Without recorded keys every token runs; the tokens to be read always do.
    cut = 0 if keep is None or run.keys is None else min(first, tokens - keep)
    return Row(index, edits, first_layer(edits, n_layers), cut)


def plan(anatomy: Anatomy, run: Run, rows: Sequence[Row], budget: int) -> Iterator[tuple[list[Row], bool]]:
    """Groups of rows that share their first token, and whether they can run apart from the model's own loop.

    A group holds at most `budget` tokens, or one row.
    """
    batch, tokens = run.grid
    if run.keys is not None:
        # Padding is told apart without knowing the image: where a model inserts it, all positions count.
        attended = attended_tokens(run.inputs, run.grid, None)
        valid = {cut: largest_cut(run.keys, tokens, cut, attended) for cut in {row.cut for row in rows}}
        rows = [replace(row, cut=valid[row.cut]) for row in rows]
    for cut in sorted({row.cut for row in rows}):
        lowest = plain_from(anatomy, run, cut)
        alike = [row for row in rows if row.cut == cut]
        alone = [r for r in alike if r.start < lowest or any(isinstance(e, CrossOff) for e in r.edits)]
        yield from (([row], False) for row in alone)
        fit = sorted((row for row in alike if row not in alone), key=lambda row: row.start)
        size = max(1, budget // (batch * (tokens - cut)))
        yield from ((fit[i : i + size], True) for i in range(0, len(fit), size))


def plain_from(anatomy: Anatomy, run: Run, cut: int) -> int:
    """The lowest layer from which nothing but the layers touches the tokens from `cut` on.

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
def one_by_one(anatomy: Anatomy, run: Run, row: Row, keep: int | None) -> Logits:
    """A row through the model's own loop over its layers: right for every family that can be replayed."""
    logits = replay(anatomy, run, min(row.start, len(anatomy.layers)), edits=row.edits).logits
    return logits if keep is None else logits[:, -keep:]


@torch.no_grad()
def together(anatomy: Anatomy, run: Run, group: Sequence[Row], keep: int | None) -> list[tuple[int, Logits]]:
    """Logits of each row's last `keep` tokens (None for all), all rows of the group in one batch.

    Raises Unfit when the layers cannot be called so.
    """
    batch = run.grid[0]
    rows = _Rows(anatomy, run, group, group[0].cut)
    try:
        with ExitStack() as hooks:
            rows.hook(hooks)
            stream = rows.through_layers()
        rows.check()
        kept = stream if keep is None else stream[:, -keep:]
        logits = replay(anatomy, run, len(anatomy.layers), hidden=kept).logits
    except torch.OutOfMemoryError:
        raise
    # Whatever a layer does not take of what it is given shows that it cannot be called this way.
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as reason:
        raise Unfit(f"{type(reason).__name__}: {reason}") from reason
    return list(zip([row.index for row in rows.order], logits.split(batch), strict=True))


def agree(anatomy: Anatomy, run: Run, cut: int) -> bool:
    """Whether two rows, one of them with all tokens from `cut` on moved, give what they give one by one."""
    lowest, keep = plain_from(anatomy, run, cut), run.grid[1] - cut
    if lowest > len(anatomy.layers):
        return False
    stream = run.resid[lowest]
    later = torch.zeros(run.grid, dtype=torch.bool, device=stream.device)
    later[:, cut:] = True
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(2)).to(stream)
    moved = [Patch(lowest, later, stream + size * stream.std() * noise) for size in (0.0, 1.0)]
    rows = [Row(i, [edit], lowest, cut) for i, edit in enumerate(moved)]
    try:
        found = together(anatomy, run, rows, keep)
    except Unfit:
        return False
    seen = later & attended_tokens(run.inputs, run.grid, None)
    for index, logits in found:
        expected = one_by_one(anatomy, run, rows[index], keep)[seen[:, -keep:]].float()
        tolerance = max(1e-5, 4 * torch.finfo(run.logits.dtype).eps) * expected.abs().max()
        if not bool(((logits[seen[:, -keep:]].float() - expected).abs() <= tolerance).all()):
            return False
    return True


def _from(cut: int, edit: Edit) -> Edit:
    """The same edit where only the tokens from `cut` on are there; keys of a knockout are all there."""
    if isinstance(edit, Patch):
        value = edit.value[:, cut:] if edit.value.ndim == 3 else edit.value
        return replace(edit, mask=edit.mask[:, cut:], value=value)
    if isinstance(edit, FreezeTokens):
        return replace(edit, mask=edit.mask[:, cut:])
    return replace(edit, query=edit.query[:, cut:]) if isinstance(edit, Knockout) else edit


@dataclass
class _Rows:
    """One pass of a group of rows through the layers."""

    anatomy: Anatomy
    run: Run
    group: Sequence[Row]
    cut: int
    order: list[Row] = field(default_factory=list)  # rows in the batch so far
    masks: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict)
    fitted: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    layer: int = 0
    hit: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        grid = self.run.grid[0], self.run.grid[1] - self.cut
        edits = {row.index: [_from(self.cut, e) for e in row.edits] for row in self.group}
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
                raise Unfit(f"layer {k} mixes tokens in another way than attention")
            for module in self_attentions(layer) if wanted or self.cut else ():
                if wanted:
                    check_maskable(module)
                hooks.callback(module.register_forward_pre_hook(self._attend, with_kwargs=True).remove)

    def check(self) -> None:
        for own in self.knockouts.values():
            for edit in own:
                if self.hit.isdisjoint(range(edit.first, edit.last + 1)):
                    raise Unfit("a knockout met no attention")

    def through_layers(self) -> Tensor:
        stream = self.run.resid[0][:0, self.cut :]
        for slot in range(min(row.start for row in self.group), len(self.anatomy.layers) + 1):
            joining = [row for row in self.group if row.start == slot]
            self.order += joining
            stream = torch.cat([stream, *[self.run.resid[slot][:, self.cut :]] * len(joining)])
            stream = self._edited(slot, stream)
            if slot < len(self.anatomy.layers) and self.order:
                stream = self._through(slot, stream)
        return stream

    def _edited(self, slot: int, stream: Tensor) -> Tensor:
        pieces = list(stream.split(self.run.grid[0]))
        changed = False
        for i, row in enumerate(self.order):
            for edit in self.at_slots[row.index]:
                piece = edit(slot, pieces[i])
                changed |= piece is not pieces[i]
                pieces[i] = piece
        return torch.cat(pieces) if changed else stream

    def _through(self, k: int, stream: Tensor) -> Tensor:
        """Layer k, for the rows with its own weights and for those with another stage's."""
        self.layer = k
        own = self.anatomy.layers[k]
        runs_in = [
            next((e.layers[k] for e in reversed(self.reverts[row.index]) if e.first <= k <= e.last), own)
            for row in self.order
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
        rows = len(stream) // self.run.grid[0]
        args, kwargs = self.run.calls[k]
        names = list(signature_of(module).parameters)
        args = tuple(self._fit(rows, name, value) for name, value in zip(names, args, strict=False))
        kwargs = {name: self._fit(rows, name, value) for name, value in kwargs.items()}
        args, kwargs = with_stream(module, args, kwargs, stream)
        output = module(*args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    def _fit(self, rows: int, name: str, argument: Any) -> Any:
        """An argument of a layer, for the tokens from `cut` on and for several rows."""

        def fit(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if (id(value), rows, name) not in self.fitted:
                axis = _item_axis(value, *self.run.grid)
                fitted = _repeat(self._narrow(value, name, axis), rows, axis)
                # The argument is kept with its version, so that its id stays its own.
                self.fitted[id(value), rows, name] = value, fitted
            return self.fitted[id(value), rows, name][1]

        return pytree.tree_map(fit, argument)

    def _narrow(self, value: Tensor, name: str, items: int | None) -> Tensor:
        """The tokens from `cut` on; `items` is the axis that counts the items of the batch.

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
            raise Unfit(f"a layer is given a tensor {list(value.shape)} with more than one axis of tokens")
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
            tuple(e for e in self.knockouts[row.index] if e.first <= k <= e.last) for row in self.order
        )
        if self.cut:
            assert self.run.keys is not None
            call.arguments[cache_argument(module) or ""] = Before(self.run.keys.seen[module], self.cut)
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
    """The axis of a layer's argument that counts the items of the batch; None where all items share it."""
    if value.ndim < 2:
        return None
    over_both = (
        value.ndim > 2 and value.shape[1:3] == (batch, tokens) and value.shape[-2:] != (tokens, tokens)
    )
    if over_both and value.ndim < 5:
        return 1  # several kinds of positions for each item
    return 0 if value.shape[0] == batch else None


def _repeat(value: Tensor, rows: int, axis: int | None) -> Tensor:
    """Repeat the items of a batch for each row."""
    if rows == 1 or axis is None:
        return value
    sizes = [rows if d == axis else 1 for d in range(value.ndim)]
    return (
        value.expand(*[rows if d == axis else -1 for d in range(value.ndim)])
        if value.shape[axis] == 1
        else value.repeat(*sizes)
    )
