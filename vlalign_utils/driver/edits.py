"""Edits of one replay: of the residual stream, of attention, and of the weights.

Masks are boolean [batch, tokens]; layers are 0-based and ranges `first..last` inclusive. Edits are
applied in the order given: at one layer, a later edit sees what an earlier one left.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SlotEdit = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Patch:
    """Set the residual stream that enters `layer` at the masked tokens.

    Args:
        layer: 0-based layer; `n_layers` edits what leaves the last layer, before the final norm.
        mask: boolean [batch, tokens], at least one True.
        value: one vector [width], one per masked token [selected, width] (row by row), or a whole stream
            [batch, tokens, width] of which only the masked tokens are read. Gradients reach it.

    Raises:
        IndexError, TypeError, ValueError: from `replay`, for a layer, mask or value that does not fit.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import Patch, load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> red, blue = (
        ...     vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), colour)])
        ...     for colour in ("red", "blue")
        ... )
        >>> run, donor = vlm.record(**red), vlm.record(**blue)
        >>> patched = vlm.replay(run, edits=[Patch(0, vlm.image_mask(red, run), donor.resid[0])])
        >>> bool((patched.logits == donor.logits).all())
        True
    """

    layer: int
    mask: Tensor
    value: Tensor

    def begin(self, grid: tuple[int, int]) -> SlotEdit:
        """Edit of one replay on a grid (batch, tokens), called at each slot with its stream."""
        return partial(self._edit, grid)

    def _edit(self, grid: tuple[int, int], slot: int, hidden: Tensor) -> Tensor:
        if slot != self.layer:
            return hidden
        value = self.value.to(hidden)
        if value.ndim == hidden.ndim:
            value = tokens_first(value.expand_as(hidden), grid)[self.mask]
        return _written(hidden, self.mask, value, grid)


@dataclass(frozen=True, eq=False)
class FreezeTokens:
    """Keep the masked tokens' residual stream as it enters layer `first`, up to what leaves `last`.

    The layers still compute the tokens' keys and values from the kept stream, so the other tokens
    see them. The model's own changes between layers (DeepStack) are undone too.

    Args:
        first: first layer, 0-based.
        last: last layer, inclusive.
        mask: boolean [batch, tokens], at least one True.

    Raises:
        IndexError, TypeError, ValueError: from `replay`, for layers or a mask that do not fit the run.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import FreezeTokens, load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
        >>> run = vlm.record(**inputs)
        >>> image = vlm.image_mask(inputs, run)
        >>> frozen = vlm.replay(run, edits=[FreezeTokens(first=2, last=5, mask=image)])
        >>> bool((frozen.resid[6][image] == run.resid[2][image]).all())
        True
    """

    first: int
    last: int
    mask: Tensor

    def begin(self, grid: tuple[int, int]) -> SlotEdit:
        """Edit of one replay on a grid (batch, tokens), called at each slot with its stream."""
        return partial(self._edit, grid, [])

    def _edit(self, grid: tuple[int, int], kept: list[Tensor], slot: int, hidden: Tensor) -> Tensor:
        if slot == self.first:
            kept.append(tokens_first(hidden, grid)[self.mask])
        elif self.first < slot <= self.last + 1:
            return _written(hidden, self.mask, kept[0], grid)
        return hidden


@dataclass(frozen=True, eq=False)
class Knockout:
    """Forbid attention from the `query` tokens to the `key` tokens in layers `first..last`.

    A query must keep at least one key it could see before, itself for example: a softmax over
    nothing has no meaning, so that is an error.

    Args:
        first: first layer, 0-based.
        last: last layer, inclusive.
        query: boolean [batch, tokens], tokens that attend.
        key: boolean [batch, tokens], tokens that they may not attend to.

    Raises:
        IndexError, TypeError: from `replay`, for layers or masks that do not fit the run.
        ValueError: from `replay`, also where a query loses all of its keys, a layer mixes tokens in another
            way than attention, or no self-attention ran in these layers.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import Knockout, load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
        >>> run = vlm.record(**inputs)
        >>> image = vlm.image_mask(inputs, run)
        >>> cut = vlm.replay(run, edits=[Knockout(first=2, last=5, query=~image, key=image)])
        >>> cut.hit
        (2, 3, 4, 5)
    """

    first: int
    last: int
    query: Tensor
    key: Tensor


@dataclass(frozen=True, eq=False)
class CrossOff:
    """Cut cross-attention to the image in layers `first..last`: its output there is zero.

    Args:
        first: first layer, 0-based.
        last: last layer, inclusive.

    Raises:
        IndexError, TypeError: from `replay`, for layers that the model does not have.
        ValueError: from `replay`, where no cross-attention ran in these layers.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import CrossOff, load_vlm
        >>> vlm = load_vlm("zoo/mllama")  # reaches the image by cross-attention
        >>> run, other = (
        ...     vlm.record(**vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), colour)]))
        ...     for colour in ("red", "blue")
        ... )
        >>> cut, uncut = (vlm.replay(one, edits=[CrossOff(0, vlm.n_layers - 1)]) for one in (run, other))
        >>> bool((cut.logits == uncut.logits).all())  # pixels change nothing
        True
    """

    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Revert:
    """Run layers `first..last` with the weights of another stage of the same model (weight reversion).

    Args:
        first: first layer, 0-based.
        last: last layer, inclusive.
        layers: all decoder layers of the other stage, `vlm.layers`, such as those before tuning.

    Raises:
        IndexError, TypeError: from `replay`, for layers that the model does not have.
        ValueError: from `replay`, for layers of another shape, the model's own, or beside an attention edit.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import Revert, load_vlm
        >>> tuned, before = load_vlm("zoo/llava"), load_vlm("zoo/llava", stage="aligned")
        >>> inputs = tuned.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
        >>> run = tuned.record(**inputs)
        >>> reverted = tuned.replay(run, edits=[Revert(first=2, last=5, layers=before.layers)])
        >>> bool((reverted.resid[2] == run.resid[2]).all()), bool((reverted.resid[3] == run.resid[3]).all())
        (True, False)
    """

    first: int
    last: int
    layers: nn.ModuleList


Edit = Patch | FreezeTokens | Knockout | CrossOff | Revert


def first_layer(edits: Sequence[Edit], n_layers: int) -> int:
    """Lowest layer that any of the edits touches; `n_layers` where there is none."""
    return min((e.layer if isinstance(e, Patch) else e.first for e in edits), default=n_layers)


def check_edits(edits: Any, stream: Tensor, grid: tuple[int, int], start: int, layers: nn.ModuleList) -> None:
    """Raise TypeError, IndexError or ValueError, naming the edit, unless all fit a replay from `start`.

    `stream` is any residual stream of the run, `grid` its batch size and number of tokens.
    """
    n_layers = len(layers)
    if not isinstance(edits, list | tuple):
        raise TypeError(f"edits must be a list of edits, got {type(edits).__name__}")
    for edit in edits:
        kind = type(edit).__name__
        if not isinstance(edit, Edit):
            raise TypeError(f"edits must be Patch, FreezeTokens, Knockout, CrossOff or Revert, got {kind}")
        if isinstance(edit, Patch):
            check_layer(edit.layer, f"{kind} layer", start, n_layers)
        else:
            check_layer(edit.first, f"{kind} first", start, n_layers - 1)
            check_layer(edit.last, f"{kind} last", edit.first, n_layers - 1)
        for name in {"mask", "query", "key"} & vars(edit).keys():
            _check_mask(getattr(edit, name), f"{kind} {name}", grid)
        if isinstance(edit, Patch):
            _check_value(edit.value, edit.mask, stream, grid)
        if isinstance(edit, Revert):
            check_same_layers(layers, edit.layers, range(edit.first, edit.last + 1))
            if any(isinstance(other, Knockout | CrossOff) for other in edits):
                raise ValueError("Revert cannot be combined with Knockout or CrossOff in one replay")


def check_same_layers(own: nn.ModuleList, others: nn.ModuleList, which: Iterable[int]) -> None:
    """Raise ValueError unless these layers have the shapes of the other model's."""
    if others is own:
        raise ValueError("layers are the model's own: give those of another stage of it")
    for k in which:
        shapes = [
            {name: p.shape for name, p in layers[k].named_parameters()} if k < len(layers) else None
            for layers in (own, others)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layers differ from the model's at layer {k}: give those of another stage of it"
            )


def check_layer(layer: Any, what: str, low: int, high: int) -> None:
    """Raise TypeError unless `layer` is an integer, IndexError unless low <= layer <= high."""
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise TypeError(f"{what} must be an integer, got {layer!r}")
    if not low <= layer <= high:
        raise IndexError(f"{what} is {layer}, expected {low}..{high}")


def _check_mask(mask: Any, what: str, grid: tuple[int, int]) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{what} must be a boolean tensor [batch, tokens], got {found}")
    if tuple(mask.shape) != grid:
        raise ValueError(f"{what} has shape {list(mask.shape)}, the run has [batch, tokens] = {list(grid)}")
    if not mask.any():
        raise ValueError(f"{what} selects no token")


def _check_value(value: Any, mask: Tensor, stream: Tensor, grid: tuple[int, int]) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError("Patch value must be a tensor of floating-point numbers")
    selected = tokens_first(stream, grid)[mask]
    target = stream.shape if value.ndim == stream.ndim else selected.shape
    try:
        fits = torch.broadcast_shapes(value.shape, target) == target
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"Patch value has shape {list(value.shape)}, expected [{stream.shape[-1]}], "
            f"{list(selected.shape)} for one row per masked token, or {list(stream.shape)}"
        )


def tokens_first(hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """View of a residual stream with batch and tokens as its first dimensions."""
    axis = next(i for i in range(hidden.ndim - 3, -1, -1) if tuple(hidden.shape[i : i + 2]) == grid)
    return hidden.movedim((axis, axis + 1), (0, 1))


def _written(hidden: Tensor, mask: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    hidden = hidden.clone()
    tokens_first(hidden, grid)[mask] = value
    return hidden
