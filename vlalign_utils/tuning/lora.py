"""LoRA in chosen decoder layers, and nowhere else, through `peft`."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.functional import cast_adapter_dtype
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlalign_utils.driver.edits import check_layer
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.interventions.submodule_removal import submodules
from vlalign_utils.tuning.trainable import trainable

ADAPTER = "default"  # peft's own name for a first adapter
Linears = dict[str, nn.Linear | Conv1D]  # by their name inside a layer


@contextmanager
def adapted(
    vlm: VLM, layers: Sequence[int], rank: int, seed: int = 0, part: str = ""
) -> Iterator[list[nn.Parameter]]:
    """LoRA matrices of this rank in every linear module of these decoder layers, while the block runs.

    With a `part`, "attention" or "MLP", only in the modules of that part (see `submodules`).

    Yields the new parameters, A [rank, in] and B [out, rank] by turns; a module then gives W x + 2 B A x, so
    alpha is 2 rank, without dropout. B starts at zero and changes nothing; A is drawn from `seed`. They are
    on their module's device, in float32 where W is in less: steps too small for half precision count. What
    else has a gradient stays as it was asked for. Experts held in one tensor, and modules that derive from a
    linear one to give something else, get no adapter.

    Afterwards the same modules are back in their places, with the `requires_grad` they came with. Raises
    IndexError or TypeError for a layer that is not there, and ValueError for a rank below 1, no layer, a
    layer without linear modules or whose weights are not in memory, a model that has adapters already, and
    where `submodules` finds no such part.
    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    found = _linears(vlm, layers, rank, part)
    for k, linears in found.items():
        if any(module.weight.is_meta for module in linears.values()):
            raise ValueError(
                f"the weights of layer {k} are offloaded: load the model with this layer in memory"
            )
    asked = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    try:
        with trainable(vlm.model, asked):
            new = _inject(vlm, found, rank, seed)
            with trainable(vlm.model, [*asked, *new]):  # peft froze the layers
                yield new
    finally:
        for k, linears in found.items():
            for name, module in linears.items():
                vlm.layers[k].set_submodule(name, module)


def parameter_count(vlm: VLM, layers: Sequence[int], rank: int, part: str = "") -> int:
    """Number of parameters that `adapted` adds, rank (in + out) for every module. Raises as it does."""
    return rank * sum(
        _widths(m) for linears in _linears(vlm, layers, rank, part).values() for m in linears.values()
    )


def _widths(module: nn.Linear | Conv1D) -> int:
    # Not the shape of the weights, which may be packed.
    return module.nx + module.nf if isinstance(module, Conv1D) else module.in_features + module.out_features


def _linears(vlm: VLM, layers: Sequence[int], rank: int, part: str) -> dict[int, Linears]:
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    if not layers:
        raise ValueError("layers is empty: name the decoder layers that get adapters")
    for k in layers:
        check_layer(k, "layer", 0, vlm.n_layers - 1)
    for name, module in vlm.model.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise ValueError(
                f"the model has an adapter already, in {name}: leave the block that put it there, or merge "
                "it with peft's merge_and_unload() before the model is wrapped"
            )
    found = {k: linears_of(vlm.layers[k], part) for k in sorted(set(layers))}
    for k, linears in found.items():
        if not linears:
            raise ValueError(
                f"layer {k} ({type(vlm.layers[k]).__name__}) has no linear module for an adapter"
                + f" in its {part}" * bool(part)
            )
    return found


def linears_of(layer: nn.Module, part: str = "") -> Linears:
    """Linear modules of a decoder layer that adapters can be put on, all of them or those of a part, by name.

    Raises ValueError as `submodules` does, where a part is asked for.
    """
    # A linear module with a forward of the model's own gives something else than W x: scores of a router,
    # products by groups. That of a quantised one comes from elsewhere.
    own = type(layer).__module__
    within = {id(m) for of in submodules(layer)[part] for m in of.modules()} if part else None
    return {
        name: module
        for name, module in layer.named_modules()
        if (within is None or id(module) in within)
        and isinstance(module, nn.Linear | Conv1D)
        and type(module).forward.__module__ != own
    }


def _inject(vlm: VLM, found: dict[int, Linears], rank: int, seed: int) -> list[nn.Parameter]:
    new: list[nn.Parameter] = []
    # Drawn on the processor, by its generator alone: the same on every device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # it matters for merging only
        torch.default_generator.manual_seed(seed)
        for k, linears in found.items():
            own = set(vlm.layers[k].parameters())
            # peft is shown one layer at a time, in a list that holds nothing else and takes its notes.
            # In the whole model it would also rewrite the targets of some mixtures of experts, by model type.
            alone = nn.ModuleList([vlm.layers[k]])
            names = "|".join(re.escape(f"0.{name}") for name in linears)  # a string has to match as a whole
            config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names)
            inject_adapter_in_model(config, alone, ADAPTER)
            cast_adapter_dtype(alone, ADAPTER)
            new += [parameter for parameter in vlm.layers[k].parameters() if parameter not in own]
    return new
