"""Load a checkpoint without its weights, to find missing and mismatched ones on the headers alone."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from vlalign_utils.driver.anatomy import find_anatomy
from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading.safetensors_headers import Header


def load_without_weights(
    name: str,
    config: Any,
    headers: Mapping[str, Header],
    dtype: torch.dtype,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Build the model on the meta device, after transformers' own loading of tensors that have no storage.

    Raises ValueError when weights are missing, have another shape, or belong to decoder layers that the
    configuration does not have, and when the model has no such attention.
    """
    config = deepcopy(config)
    if attention is None:
        config._attn_implementation = None  # not what the machine it was trained on had
    tensors = {key: header.on_meta() for key, header in headers.items()}
    with without_messages():
        try:
            with torch.device("meta"):
                built: Any = AutoModelForImageTextToText.from_config(
                    config, trust_remote_code=trust_remote_code, attn_implementation=attention
                )
        except (ValueError, ImportError) as error:
            if attention is None:
                raise
            reason = str(error).strip().split(". ")[0].rstrip(".")
            raise ValueError(
                f"{name} cannot use attn_implementation={attention!r}, "
                f'pass "eager" or "sdpa" instead: {reason}'
            ) from None
        model, info = type(built).from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            device_map="meta",
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check(name, model, info)
    return model.eval()


def _check(name: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    kind = type(model).__name__
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights of {kind}, {missing[0]} first")
    if mismatched := sorted(info["mismatched_keys"]):
        weight, stored, expected = mismatched[0]
        raise ValueError(
            f"{name}: {len(mismatched)} weights do not fit its config.json, {weight} first, which is "
            f"{list(stored)} where {kind} has {list(expected)}"
        )
    anatomy = find_anatomy(model)
    surplus = sorted(key for key in info["unexpected_keys"] if key.startswith(f"{anatomy.name}."))
    if surplus:
        raise ValueError(
            f"{name} holds weights of decoder layers that {kind} with {len(anatomy.layers)} layers does not "
            f"have, {surplus[0]} first: num_hidden_layers in its config.json is not that of the weights"
        )
