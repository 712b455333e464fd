"""load_vlm: one call for a hub id, a folder, a stage of a chain, a base language model, or a model at hand.

Everything that can be wrong is checked on file names, configuration and the headers of the weights,
before a weight is downloaded or a tensor allocated.
"""

import json
import shutil
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
)

from vlalign_utils.driver.verbosity import without_progress_bars
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.loading.base_model import check_pair, find_base
from vlalign_utils.loading.checkpoint import (
    LOG,
    Checkpoint,
    check_files,
    fetch_small,
    fetch_weights,
    locate,
)
from vlalign_utils.loading.dry_run import load_without_weights
from vlalign_utils.loading.memory import check_memory
from vlalign_utils.loading.placement import DeviceMap, place
from vlalign_utils.loading.processors import load_processor
from vlalign_utils.loading.safetensors_headers import fingerprint, read_headers
from vlalign_utils.loading.source import Source


def load_vlm(
    name: str | Path | nn.Module,
    stage: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    *,
    processor: Any = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
    device_map: DeviceMap | None = None,
    quantization: str | None = None,
) -> VLM:
    """Load a vision-language model with its processor, in eval mode; `source` says what it came from.

    `name` is a hub id, or a folder, taken from the working directory or else from the repository, or a
    loaded model, which is only wrapped. A folder that holds a chain of checkpoints (base, aligned, tuned)
    is entered at `stage`, "tuned" by default. For any other model "base" puts the weights of its base
    language model into the decoder: those of `base`, else of the one its configuration records.

    `device="auto"` is cuda, then mps, then cpu; `device_map` spreads the model instead. `dtype="auto"` is
    the checkpoint's own, and float32 on cpu. `attn_implementation=None` is sdpa where the model's class
    supports it, else eager. `quantization` is "4bit" or "8bit". Raises FileNotFoundError or ValueError with
    one sentence on what to do.
    """
    if not isinstance(name, str | Path | nn.Module):
        raise ValueError(f"name is {name!r}, expected a hub id, a folder or a loaded model")
    if isinstance(name, nn.Module):
        given: dict[str, Any] = {
            "stage": stage,
            "revision": revision,
            "attn_implementation": attn_implementation,
        }
        given |= {"base": base, "base_revision": base_revision, "device_map": device_map}
        given |= {"quantization": quantization, "trust_remote_code": trust_remote_code or None}
        given |= {k: None if v == "auto" else v for k, v in (("device", device), ("dtype", dtype))}
        return _wrap(name, processor, [k for k, v in given.items() if v is not None])
    placement = place(device, dtype, attn_implementation, device_map, quantization)
    checkpoint = locate(name, stage, revision)
    check_files(checkpoint, processor is None)
    wants_base = check_pair(checkpoint, base, base_revision, quantization)
    if trust_remote_code:
        warnings.warn(f"trust_remote_code runs Python code that comes with {checkpoint.name}", stacklevel=2)
    with without_progress_bars():
        folder = fetch_small(checkpoint, trust_remote_code)
        config = read_config(checkpoint, folder, trust_remote_code)
        quantised = getattr(config, "quantization_config", None) is not None
        if quantised and (quantization or wants_base):
            what = "quantization" if quantization else "stage='base'"
            raise ValueError(f"{checkpoint.name} is stored quantised: {what} cannot be applied to it")
        precision = placement.precision(_stored_dtype(config))
        if processor is None:
            processor = load_processor(checkpoint.name, folder, trust_remote_code)
        headers = read_headers(checkpoint)
        replacement = None
        if not quantised:  # else only transformers knows what the weights will be called
            empty = load_without_weights(
                checkpoint.name, config, headers, precision, attn_implementation, trust_remote_code
            )
            check_memory(checkpoint.name, empty, placement)
            if wants_base:
                replacement = find_base(checkpoint, config, empty, base, base_revision, trust_remote_code)
        fetch_weights(checkpoint, {header.file for header in headers.values()})
        model = _allocate(folder, config, trust_remote_code, placement.arguments(precision))
        swapped = None if replacement is None else replacement.apply(model)
    vlm = VLM(model.eval(), processor)
    vlm.source = Source(
        name=checkpoint.name,
        revision=checkpoint.revision,
        fingerprint=None if checkpoint.revision else fingerprint(checkpoint),
        stage=checkpoint.stage,
        dtype=_name(precision),
        attention=_attention(model),
        quantization=quantization,
        base=swapped,
    )
    reason = "as asked" if attn_implementation else "the best that its class supports"
    LOG.info("%s: attention is %s, %s", checkpoint.name, vlm.source.attention, reason)
    _try_out(vlm)
    return vlm


def _try_out(vlm: VLM) -> None:
    """Find out on two small pictures what the model allows; ValueError when it cannot be driven exactly."""
    try:
        inputs = vlm.trial_inputs()
    # A processor that takes no such pictures may still take the user's own.
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as reason:
        LOG.warning("%s: not tried out, its processor refuses the trial: %s", vlm.source.name, reason)
        return
    allowed = vlm.capabilities(inputs)
    allowed.require("replay")
    for what, finding in allowed.findings().items():
        if not finding.works:
            LOG.info("%s: no %s, %s", vlm.source.name, what, finding.detail)


def _wrap(model: nn.Module, processor: Any, given: list[str]) -> VLM:
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be applied to a loaded {type(model).__name__}: "
            "load it that way, or pass its name or folder instead of the object"
        )
    vlm = VLM(model, processor)
    config: Any = model.config
    revision = getattr(config, "_commit_hash", None)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    vlm.source = Source(name, revision, None, None, _name(next(model.parameters()).dtype), _attention(model))
    return vlm


def _attention(model: Any) -> str | None:
    return getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_config(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool) -> Any:
    """Configuration of an image-text-to-text model. Raises ValueError, saying why, where there is none."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, AttributeError, TypeError, StrictDataclassError) as error:
        raise ValueError(
            f"{checkpoint.name} cannot be loaded: {_why_not(folder, error, trust_remote_code)}"
        ) from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not hasattr(config, "auto_map"):
        raise ValueError(
            f"{checkpoint.name} is not an image-text-to-text model: "
            f"its configuration is {type(config).__name__}"
        )
    return config


def _why_not(folder: Path, error: Exception, trust_remote_code: bool) -> str:
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


def _stored_dtype(config: Any) -> torch.dtype:
    return config.get_text_config(decoder=True).dtype or config.dtype or torch.float32


def _allocate(folder: Path, config: Any, trust_remote_code: bool, arguments: dict[str, Any]) -> Any:
    """The model with its weights, where the arguments put it."""
    if arguments["attn_implementation"] is None:
        config._attn_implementation = None  # not what the machine it was trained on had
    if "device_map" not in arguments:
        offload = None
    else:  # only weights that are not in the files as the model has them are written there
        offload = arguments["offload_folder"] = tempfile.mkdtemp(prefix="vlalign-")
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **arguments,
        )
    except BaseException:
        shutil.rmtree(offload or "", ignore_errors=True)
        raise
    if offload:
        weakref.finalize(model, shutil.rmtree, offload, ignore_errors=True)
    return model
