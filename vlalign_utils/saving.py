"""A model as it is now, written as a folder that transformers loads."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vlalign_utils.adapters import ADAPTER
from vlalign_utils.composed import ComposedProcessor
from vlalign_utils.models import VLM


def save(vlm: VLM, folder: str | Path) -> None:
    """Write weights, configuration and processor, whole or not at all; in the body of `tune`, as tuned.

    LoRA matrices are merged into the weights that they belong to, so that the folder holds a plain model of
    the same class; the model in memory keeps them apart. Of processes that train together the main one
    writes. Raises ValueError for a folder that is there already, and for LoRA on offloaded or quantised
    weights.
    """
    if PartialState._shared_state and not PartialState().is_main_process:
        return
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already: name another folder, or delete it")
    state = merged(vlm.model)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model: Any = vlm.model
    model.save_pretrained(partial, state_dict=state)
    if vlm.processor is not None:
        save_processor(vlm.processor, partial)
    partial.rename(folder)


def merged(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights by name, W + 2 B A where LoRA matrices are, computed in float32; None where there are none.

    Raises ValueError for LoRA on offloaded or quantised weights.
    """
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not layers:
        return None
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if not any(name.startswith(f"{layer}.lora_") for layer in layers)
    }
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if weight.is_meta or not weight.is_floating_point():
            raise ValueError(
                f"{name} is offloaded or quantised, so LoRA cannot be merged into it: load the model without"
            )
        added = layer.get_delta_weight(ADAPTER).detach()
        state[f"{name}.weight"] = (weight.detach().float() + added).to(weight.dtype)
    return state


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor, or the parts of a composed one."""
    composed = isinstance(processor, ComposedProcessor)
    for part in [processor.tokenizer, processor.image_processor] if composed else [processor]:
        part.save_pretrained(folder)
