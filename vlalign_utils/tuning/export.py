"""Export of a model, as it is now, to a folder that transformers loads."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.paths import atomic_folder
from vlalign_utils.tuning.lora import ADAPTER

MERGED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def save(vlm: VLM, folder: str | Path) -> None:
    """Write weights, configuration and processor to a new folder, whole or not at all.

    In the body of `tune` the weights are the tuned ones. LoRA matrices are merged into the weights that they
    belong to, so that the folder holds a plain model of the same class; the model in memory keeps them apart.
    Of processes that train together the main one writes. Raises ValueError for a folder that is there
    already, and for LoRA on offloaded or quantised weights, and WriteError for a full or read-only disk.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from vlalign_utils import load_vlm, save
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save(load_vlm("zoo/llava", "aligned"), Path(place) / "copy")
    ...     load_vlm(Path(place) / "copy").n_layers
    8
    """
    if PartialState._shared_state and not PartialState().is_main_process:
        return
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already: name another folder, or delete it")
    state = merged(vlm.model)
    model: Any = vlm.model
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=state)
        if vlm.processor is not None:
            vlm.processor.save_pretrained(partial)


def merged(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights by name, W + 2 B A where LoRA matrices are, computed in float32; None where there are none.

    Raises ValueError for LoRA on offloaded or quantised weights.
    """
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not layers:
        return None
    state = model.state_dict()
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if weight.is_meta or weight.dtype not in MERGED:
            raise ValueError(
                f"{name} is offloaded or quantised, so LoRA cannot be merged into it: load the model without"
            )
        base = f"{name}.base_layer."
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value = state.pop(key)
            if key.startswith(base):
                state[f"{name}.{key.removeprefix(base)}"] = value
        added = layer.get_delta_weight(ADAPTER).detach()
        state[f"{name}.weight"] = (weight.detach().float() + added).to(weight.dtype)
    return state
