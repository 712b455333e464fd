"""load_vlm: one call for a hub id, a folder, or one stage of a chain of checkpoints.

Everything that can be wrong is checked on file names and configuration, before a weight is
downloaded or a tensor allocated.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from vlalign_utils.checkpoints import check_files, locate
from vlalign_utils.models import VLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def load_vlm(
    name: str | Path,
    stage: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> VLM:
    """Load a vision-language model with its processor, in eval mode.

    `name` is a hub id or a folder, taken from the working directory or else from the repository. A
    folder that holds a chain of checkpoints (base, aligned, tuned) is entered at `stage`, "tuned" by
    default. `device="auto"` is cuda, then mps, then cpu; `dtype="auto"` is the checkpoint's own, and
    float32 on cpu. Raises FileNotFoundError or ValueError with one sentence on what to do.
    """
    where = _device(device)
    precision = _dtype(dtype)
    if attn_implementation not in (None, *ATTENTION):
        raise ValueError(
            f"attn_implementation={attn_implementation!r}, expected one of {', '.join(ATTENTION)}"
        )
    source, files = locate(name, stage, revision)
    check_files(source, files)
    if trust_remote_code:
        warnings.warn(f"trust_remote_code runs Python code that comes with {source}", stacklevel=2)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, **common)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not hasattr(config, "auto_map"):
        raise ValueError(
            f"{source} is not an image-text-to-text model: its configuration is {type(config).__name__}"
        )
    if precision is None:
        stored = config.get_text_config(decoder=True).dtype or config.dtype or torch.float32
        precision = torch.float32 if where.type == "cpu" else stored
    with _quiet():
        processor = AutoProcessor.from_pretrained(source, **common)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            dtype=precision,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]} first"
        )
    return VLM(model.to(where).eval(), processor)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar with changing times outside a terminal, no note that PIL stands in for torchvision."""
    logger = logging.getLogger("transformers.utils.import_utils")

    def wanted(message: logging.LogRecord) -> bool:
        return "requires torchvision" not in message.getMessage()

    hide_bar = is_progress_bar_enabled() and not sys.stderr.isatty()
    logger.addFilter(wanted)
    if hide_bar:
        disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(wanted)
        if hide_bar:
            enable_progress_bar()


def _device(name: str | torch.device) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r}, expected auto, cpu, cuda, cuda:0 or mps") from None
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or not available.get(device.type, False):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device={str(name)!r} is not available here, only {here}")
    return device


def _dtype(name: str | torch.dtype) -> torch.dtype | None:
    """The precision asked for, None for auto."""
    if name == "auto":
        return None
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype={name!r}, expected auto, {', '.join(DTYPES)}")
    return dtype
