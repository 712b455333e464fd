"""Assemble a model from pretrained parts and what a stage keeps of its own: a plain folder in the cache."""

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading.cached_folder import cached_folder
from vlalign_utils.loading.checkpoint import LOG, WEIGHTS, Checkpoint
from vlalign_utils.loading.parts import find_part, part_folder
from vlalign_utils.loading.spare_tokens import write_tokenizer
from vlalign_utils.loading.stage_file import PRECISION, SETTINGS, STAGE, Lora, Source, Stage, read_stage
from vlalign_utils.paths import ROOT, sha256

CACHE = ROOT / ".cache" / "assembled"
FORMAT = 1  # of the folders: raise it when assembling changes what it writes


def whole(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint kept as what was trained, with the plain folder that it makes; any other as it is.

    Raises ValueError as `plain_folder` does.
    """
    if checkpoint.folder is None or STAGE not in checkpoint.files:
        return checkpoint
    folder = plain_folder(checkpoint.folder)
    return replace(checkpoint, folder=folder, files=frozenset(path.name for path in folder.iterdir()))


def plain_folder(stage: Path) -> Path:
    """Hugging Face folder of a stage, for `AutoModelForImageTextToText` and `AutoProcessor`.

    Args:
        stage: folder with a stage.json, such as zoo/smollm/tuned.

    Returns:
        A folder in the cache, written on first use: weights in bfloat16.

    Raises:
        ValueError: for a file that is damaged, a part that is not installed, and weights that do not fit.
        WriteError: when the cache cannot be written.
    """
    made_of = read_stage(stage)

    def build(folder: Path) -> None:
        LOG.info("%s is assembled once, into %s", stage, CACHE)
        for source in made_of.parts.values():
            write_tokenizer(part_folder(source.part), folder, made_of.tokens)
        for name in SETTINGS:
            shutil.copyfile(stage / name, folder / name)
        weights = assemble(AutoConfig.from_pretrained(stage), made_of, stage)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    name = "-".join((*stage.resolve().parts[-2:], identity(stage)[:8]))
    return cached_folder(CACHE / name, build)


def identity(stage: Path) -> str:
    """SHA-256 of everything that decides the model of a stage; no part need be installed.

    Raises ValueError for a file that is missing or damaged.
    """
    made_of = read_stage(stage)
    digest = hashlib.sha256(f"{FORMAT} {made_of.model_dump_json()}".encode())
    for name in SETTINGS:
        digest.update(sha256(stage / name).encode())
    for source in made_of.parts.values():
        digest.update(find_part(source.part).identity.encode())
    return digest.hexdigest()


def assemble(config: Any, stage: Stage, folder: Path) -> dict[str, Tensor]:
    """Every weight of a model by name, in bfloat16.

    Args:
        config: configuration of the model.
        stage: what it is made of.
        folder: where paths in `stage` start.

    Raises:
        ValueError: when a part or file does not fit the model, or a weight has no source.
    """
    with torch.device("meta"), without_messages():
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.tie_weights()
    known = set(model.state_dict())
    tied = known - {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    found: dict[str, Tensor] = {}
    for module, source in stage.parts.items():
        found |= _of_part(model, module, source)
    for file in stage.weights:
        found |= load_file(folder / file)
    if strays := sorted(found.keys() - known):
        raise ValueError(f"{folder}: {type(model).__name__} has no weight {strays[0]}")
    absent = known - tied - found.keys()
    if absent and stage.seed is None:
        raise ValueError(f"{folder}: no file holds {min(absent)}, and there is no seed to draw it from")
    if absent:
        found = _drawn(model, absent, stage.seed or 0) | found
    if stage.lora is not None:
        found |= _merged(found, load_file(folder / stage.lora.file), stage.lora)
    for name, expected in model.state_dict().items():
        if name in found and found[name].shape != expected.shape:
            sizes = f"is {list(found[name].shape)}, {type(model).__name__} has {list(expected.shape)}"
            raise ValueError(f"{folder}: {name} {sizes}")
    return {name: t.to(PRECISION) if t.is_floating_point() else t for name, t in found.items()}


def _of_part(model: nn.Module, module: str, source: Source) -> dict[str, Tensor]:
    """Weights of a part's module under the names that they have in the model, all of them."""
    stored = load_file(part_folder(source.part) / WEIGHTS)
    wanted = model.get_submodule(module).state_dict()
    missing = sorted(name for name in wanted if f"{source.module}.{name}" not in stored)
    if missing:
        raise ValueError(f"{source.part} has no weight {source.module}.{missing[0]} for {module}")
    return {f"{module}.{name}": stored[f"{source.module}.{name}"] for name in wanted}


def _drawn(model: nn.Module, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Weights as `reset_parameters` of their modules draws them, in order of the modules, on the CPU."""
    owners = {name.rpartition(".")[0] for name in names}
    drawn: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for owner, module in model.named_modules():
            if owner in owners:
                fresh: Any = module.to_empty(device="cpu", recurse=False)
                fresh.reset_parameters()
                drawn |= {f"{owner}.{name}": tensor.detach() for name, tensor in fresh.state_dict().items()}
    return drawn


def _merged(weights: Mapping[str, Tensor], low_rank: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """W + alpha / rank * B A for every module that has the two matrices, computed in float32.

    Raises ValueError for a matrix without its other one, and for a module that the model does not have.
    """
    merged = {}
    for module in sorted({name.rpartition(".lora_")[0] for name in low_rank}):
        try:
            a, b = (low_rank[f"{module}.lora_{side}.weight"].float() for side in "AB")
        except KeyError as missing:
            raise ValueError(f"{lora.file}: there is no matrix {missing}") from None
        target = f"{module}.weight"
        if target not in weights:
            raise ValueError(f"{lora.file}: the model has no weight {target} to add to")
        added = lora.alpha / lora.rank * (b @ a)
        merged[target] = (weights[target].float() + added).to(PRECISION)
    return merged
