"""The usual ways, as people write them: the whole model again for every edit, with plain hooks or nnsight."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vlalign_utils import VLM

Inputs = dict[str, Tensor]


@torch.no_grad()
def patch_sweep(vlm: VLM, inputs: Inputs, values: Sequence[Tensor], where: Tensor) -> Tensor:
    """Logits of the last token, with a donor's states put into one layer at a time."""
    found = []
    for layer, value in zip(vlm.layers, values, strict=True):

        def overwrite(module: Any, args: Any, value: Tensor = value) -> Any:
            hidden = args[0].clone()
            hidden[where] = value[where]
            return (hidden, *args[1:])

        handle = layer.register_forward_pre_hook(overwrite)
        found.append(vlm.model(**inputs, use_cache=False).logits[:, -1])
        handle.remove()
    return torch.stack(found)


@torch.no_grad()
def patch_sweep_nnsight(vlm: VLM, inputs: Inputs, values: Sequence[Tensor], where: Tensor) -> Tensor:
    """Logits of a patch sweep with nnsight, one trace for each layer."""
    import nnsight  # gives every object new methods, so not before it is asked for

    model: Any = nnsight.NNsight(vlm.model)
    layers, found = model.model.language_model.layers, []
    for k, value in enumerate(values):
        with model.trace(**inputs, use_cache=False):
            layers[k].input[where] = value[where]
            logits = model.output.logits[:, -1].save()
        found.append(logits)
    return torch.stack(found)


@torch.no_grad()
def freeze_sweep(vlm: VLM, inputs: Inputs, where: Tensor, width: int) -> Tensor:
    """Logits of the last token, with the masked tokens held through `width` layers from each start."""
    found = []
    for first in range(vlm.n_layers - width + 1):
        kept: list[Tensor] = []

        def keep(module: Any, args: Any, kept: list[Tensor] = kept) -> None:
            kept.append(args[0][where])

        def hold(module: Any, args: Any, output: Tensor, kept: list[Tensor] = kept) -> Tensor:
            output = output.clone()
            output[where] = kept[0]
            return output

        with ExitStack() as hooks:
            hooks.callback(vlm.layers[first].register_forward_pre_hook(keep).remove)
            for layer in vlm.layers[first : first + width]:
                hooks.callback(layer.register_forward_hook(hold).remove)
            found.append(vlm.model(**inputs, use_cache=False).logits[:, -1])
    return torch.stack(found)


@torch.no_grad()
def knockout_sweep(vlm: VLM, inputs: Inputs, query: Tensor, key: Tensor, width: int) -> Tensor:
    """Logits of the last token, with attention forbidden in `width` layers from each start."""
    tokens = inputs["input_ids"].shape[1]
    allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()[None, None]
    allowed = allowed & ~(query[:, None, :, None] & key[:, None, None, :])
    mask = torch.zeros(allowed.shape, dtype=vlm.model.dtype, device=query.device)
    mask = mask.masked_fill(~allowed, torch.finfo(vlm.model.dtype).min)
    found = []
    for first in range(vlm.n_layers - width + 1):
        with ExitStack() as hooks:
            for layer in vlm.layers[first : first + width]:

                def forbid(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                    return args, {**kwargs, "attention_mask": mask}

                hook = layer.self_attn.register_forward_pre_hook(forbid, with_kwargs=True)
                hooks.callback(hook.remove)
            found.append(vlm.model(**inputs, use_cache=False).logits[:, -1])
    return torch.stack(found)


@torch.no_grad()
def pooled_nnsight(vlm: VLM, inputs: Inputs, masks: Sequence[Tensor]) -> Tensor:
    """Means over masked tokens of what enters each layer and leaves the last: [masks, layers, batch, d]."""
    import nnsight

    model: Any = nnsight.NNsight(vlm.model)
    layers = model.model.language_model.layers
    weights = torch.stack([(mask / mask.sum(-1, keepdim=True)).to(vlm.model.dtype) for mask in masks], dim=1)
    with model.trace(**inputs, use_cache=False):
        means = [weights @ layer.input for layer in layers]
        means.append(weights @ layers[-1].output)
        found = nnsight.save(torch.stack(means))
    return found.transpose(0, 2).transpose(1, 2)  # [layers, batch, masks, d] -> [masks, layers, batch, d]
