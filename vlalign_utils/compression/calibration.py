"""Change of the residual stream by each submodule of a decoder, on some texts or images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlalign_utils.compression.closed_form import stream_change
from vlalign_utils.data.items import Item
from vlalign_utils.driver.anatomy import signature
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import as_batch
from vlalign_utils.interventions.submodule_removal import PARTS, removed, submodules

Unit = tuple[int, str]  # a layer, and "attention" or "MLP"


@dataclass(frozen=True)
class Calibration:
    """Changes of the stream by submodule, and X'X [width, width] of the inputs of every MLP by layer.

    Both are means over tokens: of prompts, images and answers, but not of padding.
    """

    change: dict[Unit, float]
    inputs: dict[int, Float[Tensor, "width width"]]
    tokens: int

    def least(self, part: str, number: int, layers: Sequence[int] | None = None) -> list[Unit]:
        """Submodules of one part that change the stream least, the earlier of two alike first.

        Args:
            part: "attention" or "MLP".
            number: how many.
            layers: where they may be, all by default.

        Raises ValueError when there are not so many.
        """
        allowed = [u for u in self.change if u[1] == part and (layers is None or u[0] in layers)]
        if not 0 <= number <= len(allowed):
            raise ValueError(f"number is {number}, expected 0..{len(allowed)} of {part}")
        return sorted(sorted(allowed, key=lambda unit: (self.change[unit], unit))[:number])


def module_of(vlm: VLM, unit: Unit) -> nn.Module:
    """The one module of a submodule.

    Raises ValueError where a layer has several of a part, as one with cross-attention beside its own has, and
    as `submodules` does.
    """
    layer, part = unit
    found = submodules(vlm.layers[layer])[part]
    if len(found) != 1:
        raise ValueError(
            f"layer {layer} has {len(found)} modules of {part}: nothing can be fitted in place of several"
        )
    return found[0]


@torch.no_grad()
def calibrate(vlm: VLM, items: Sequence[Item]) -> Calibration:
    """Run the items once, as one batch, and measure every submodule where it stands.

    The stream that attention changes is the one that enters its layer; the stream that the MLP changes is
    what the layer returns when its MLP adds nothing. So norms around a submodule count as part of it.

    Args:
        vlm: a model with its processor.
        items: questions with their answers; all have an image, or none.

    Raises ValueError as `module_of` does, when there are no items, and where a layer does not run on them.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> found = calibrate(load_vlm("zoo/llava"), load_suite("digits", 8))
        >>> len(found.change), found.least("MLP", 1)
        (16, [(..., 'MLP')])
    """
    if not items:
        raise ValueError("there are no items to calibrate on")
    modules = {(k, part): module_of(vlm, (k, part)) for k in range(vlm.n_layers) for part in PARTS["both"]}
    batch = as_batch(vlm, items, range(len(items)))
    inputs: dict[str, Any] = {**batch.inputs}
    grams: dict[int, Tensor] = {}
    kept = real_tokens(batch.inputs)
    with _inputs({k: modules[k, "MLP"] for k in range(vlm.n_layers)}, kept, grams):
        run = vlm.record(stop=vlm.n_layers, **inputs)  # no logits: a vocabulary is long
    check_ran(vlm, run)
    change: dict[Unit, float] = {}
    for k in sorted(run.calls):
        args, kwargs = run.calls[k]
        with removed(vlm, k, k, PARTS["MLP"]):
            half = states_of(vlm.layers[k](*args, **kwargs))
        streams = [rows(s, kept) for s in (run.resid[k], half, states_of(run.outputs[k]))]
        change[k, "attention"] = float(stream_change(streams[0], streams[1]).mean())
        change[k, "MLP"] = float(stream_change(streams[1], streams[2]).mean())
    return Calibration(change, grams, int(kept.sum()))


def check_ran(vlm: VLM, run: Run, stop: int | None = None) -> None:
    """Raise ValueError naming a layer below `stop` that a forward left out, as some do without an image."""
    missing = sorted({*range(vlm.n_layers if stop is None else stop)} - set(run.calls))
    if missing:
        raise ValueError(
            f"layer {missing[0]} does not run on these items (cross-attention without an image?): calibrate "
            "on questions about images"
        )


def real_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """Mask of the tokens of a batch, in one row, that are no padding."""
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    return mask.flatten().bool()


@contextmanager
def _inputs(modules: dict[int, nn.Module], kept: Tensor, grams: dict[int, Tensor]) -> Iterator[None]:
    """While the body runs, note X'X over tokens of what each module is given."""

    def note(k: int, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = rows(entering(module, args, kwargs), kept)
        grams[k] = x.T @ x / len(x)

    handles = [m.register_forward_pre_hook(partial(note, k), with_kwargs=True) for k, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    """The states that a submodule is given: its first argument."""
    return args[0] if args else kwargs[next(iter(signature(module).parameters))]


def states_of(output: Any) -> Tensor:
    """The states that a module returns, alone or first of several."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def rows(states: Tensor, kept: Tensor) -> Float[Tensor, "tokens width"]:
    """States of the tokens that are kept, one in a row, in double precision.

    Raises ValueError for states that are not one for each token.
    """
    flat = states.flatten(0, -2)
    if len(flat) != len(kept):
        raise ValueError(
            f"there are {len(flat)} states for {len(kept)} tokens: a decoder of several streams, or one "
            "whose submodules work on some tokens apart, cannot be measured"
        )
    return flat[kept].double()
