"""Read a checkpoint's configuration and say, in one sentence, why it cannot be read."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

# What transformers raises for a config.json that is missing, damaged, or of a model it does not have.
UNREADABLE = (ValueError, KeyError, OSError, AttributeError, TypeError, StrictDataclassError)


def read_config(name: str, folder: Path, trust_remote_code: bool = False) -> Any:
    """Configuration of an image-text-to-text model in a folder; `name` is that of the model in messages.

    Raises ValueError, with the reason, for a config.json that cannot be read or is of another kind of model.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise ValueError(
            f"{name} cannot be loaded: {_why_unreadable(folder, error, trust_remote_code)}"
        ) from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not hasattr(config, "auto_map"):
        raise ValueError(
            f"{name} is not an image-text-to-text model: its configuration is {type(config).__name__}"
        )
    return config


def _why_unreadable(folder: Path, error: Exception, trust_remote_code: bool) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return "its config.json is not JSON, download it again"
    if not isinstance(config, dict):
        return "its config.json is no mapping, download it again"
    if "auto_map" in config and not trust_remote_code:
        return "it brings Python code of its own, read that and pass trust_remote_code=True"
    if config.get("model_type") not in CONFIG_MAPPING:
        return f"transformers {transformers.__version__} has no model type {config.get('model_type')!r}"
    return f"its config.json is refused, {str(error).strip().splitlines()[0]}"


def stored_dtype(config: Any) -> torch.dtype:
    """Precision in which the checkpoint says its weights are stored, float32 where it says nothing."""
    return config.get_text_config(decoder=True).dtype or config.dtype or torch.float32


def stored_quantised(config: Any) -> bool:
    """True where the checkpoint's weights are stored as quantised codes."""
    return getattr(config, "quantization_config", None) is not None
