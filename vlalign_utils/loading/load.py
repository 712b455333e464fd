"""load_vlm: one call for a hub id, a folder, a stage of a chain, a base language model, or a model at hand.

Everything that can be wrong is checked on file names, configuration and the headers of the weights,
before a weight is downloaded or a tensor allocated.
"""

import shutil
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from vlalign_utils.driver.verbosity import without_progress_bars
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.loading.assembled import whole
from vlalign_utils.loading.base_model import check_pair, find_base
from vlalign_utils.loading.checkpoint import (
    LOG,
    check_files,
    fetch_small,
    fetch_weights,
    locate,
)
from vlalign_utils.loading.config import read_config, stored_dtype, stored_quantised
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

    Args:
        name: hub id, or folder, taken from the working directory or else from the repository, or a loaded
            model, which is only wrapped.
        stage: of a folder that holds a chain of checkpoints (base, aligned, tuned) the one to load, "tuned"
            by default. For any other model "base" loads its base language model's weights into the decoder.
        device: "auto" is cuda, then mps, then cpu.
        dtype: "auto" is the checkpoint's own, and float32 on cpu.
        revision: commit, branch or tag of a hub id.
        trust_remote_code: run Python code that comes with the checkpoint.
        attn_implementation: None is sdpa where the model's class supports it, else eager.
        processor: used instead of the checkpoint's own.
        base: hub id or folder of the base language model for stage="base", else the one that the
            configuration records.
        base_revision: revision of `base`.
        device_map: "auto", or a mapping from modules to devices, instead of `device`.
        quantization: "4bit" or "8bit", on cuda.

    Returns:
        VLM, whose capabilities were tried on two small images.

    Raises:
        FileNotFoundError: for a folder that is not there.
        ValueError: with one sentence on what to do, before a weight is read where that can be told.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> vlm = load_vlm("zoo/llava", stage="aligned")
        >>> vlm.source.name, vlm.source.dtype, vlm.n_layers
        ('zoo/llava/aligned', 'float32', 8)
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
    checkpoint = whole(locate(name, stage, revision))
    check_files(checkpoint, processor is None)
    wants_base = check_pair(checkpoint, base, base_revision, quantization)
    if trust_remote_code:
        warnings.warn(f"trust_remote_code runs Python code that comes with {checkpoint.name}", stacklevel=2)
    with without_progress_bars():
        folder = fetch_small(checkpoint, trust_remote_code)
        config = read_config(checkpoint.name, folder, trust_remote_code)
        quantised = stored_quantised(config)
        if quantised and (quantization or wants_base):
            what = "quantization" if quantization else "stage='base'"
            raise ValueError(f"{checkpoint.name} is stored quantised: {what} cannot be applied to it")
        precision = placement.precision(stored_dtype(config))
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
    _run_trials(vlm)
    return vlm


def _run_trials(vlm: VLM) -> None:
    """Run the capability trials on two small images; ValueError when replays are not exact."""
    allowed = vlm.own_capabilities()
    if allowed is None:
        return
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


def _allocate(folder: Path, config: Any, trust_remote_code: bool, arguments: dict[str, Any]) -> Any:
    """Load the model with its weights, where the arguments place it."""
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
