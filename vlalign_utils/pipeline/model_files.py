"""The model of a registry entry before it is loaded: its files, their hash, its number of decoder layers."""

import json
from functools import cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig

from vlalign_utils.loading.checkpoint import fetch_small, locate
from vlalign_utils.loading.config import UNREADABLE
from vlalign_utils.paths import sha256
from vlalign_utils.pipeline.registry import BASE, TUNED, Architecture, RegistryError


def fingerprint_of(arch: Architecture, root: Path) -> str:
    """Identity of the model: the hashes of its files, or the hub ids with their revisions.

    Raises RegistryError naming the entry and what to write there.
    """
    return json.dumps(
        [
            [arch.model, arch.revision, arch.stages, arch.base, arch.base_revision],
            [arch.dtype, arch.device_map],
            [_hashes(place) for place in _folders(arch, root)],
            _hashes(base) if (base := _base(arch, root)) else None,
        ],
        sort_keys=True,
    )


def n_layers(arch: Architecture, root: Path, fetch: bool = False) -> int | None:
    """Number of decoder layers by the configuration; None for a hub model whose configuration is not here.

    With `fetch` that one is downloaded. Raises RegistryError when the configuration cannot be had or read.
    """
    folders = _folders(arch, root)
    try:
        if folders:
            config = folders[-1] / "config.json"
        elif fetch:
            config = fetch_small(locate(arch.model, revision=arch.revision)) / "config.json"
        else:
            cached = try_to_load_from_cache(arch.model, "config.json", revision=arch.revision)
            if not isinstance(cached, str):
                return None
            config = Path(cached)
        return _layers(config, config.stat().st_mtime_ns)
    except UNREADABLE as error:
        why = str(error).strip().splitlines()[0]
        raise RegistryError(f"{arch.name}: the configuration of {arch.model} cannot be read: {why}") from None


@cache
def _layers(config: Path, changed: int) -> int:
    return int(AutoConfig.from_pretrained(config.parent).get_text_config(decoder=True).num_hidden_layers)


def _folders(arch: Architecture, root: Path) -> list[Path]:
    """The folder of each stage of a chain, the one of a single model, or none for a model of the hub."""
    folder = root / arch.model
    if not folder.is_dir():
        if arch.model.startswith("zoo/"):
            raise RegistryError(f"{arch.name}: {arch.model} is missing; {_train(arch)}")
        if arch.revision is None:
            raise RegistryError(
                f"{arch.name}: {arch.model} is no folder; a hub model needs its 'revision' pinned"
            )
        _check_single(arch)
        return []
    if arch.revision is not None:
        raise RegistryError(
            f"{arch.name}: {arch.model} is a folder, which has no revision; take 'revision' out"
        )
    if (folder / "config.json").is_file():
        _check_single(arch)
        return [folder]
    stages = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if arch.base is not None and stages:
        raise RegistryError(f"{arch.name}: {arch.model} holds stages of its own; take 'base' out")
    for stage in arch.stages:
        if stage not in stages or not stages:
            have = f"its stages are {', '.join(stages)}" if stages else "it is no model"
            hint = _train(arch) if arch.model.startswith("zoo/") else f"{have}; write those under 'stages'"
            raise RegistryError(f"{arch.name}: {folder / stage} holds no config.json; {hint}")
    return [folder / stage for stage in arch.stages] or [folder]


def _train(arch: Architecture) -> str:
    return f"run make zoo CHAIN={Path(arch.model).name}"


def _check_single(arch: Architecture) -> None:
    """Raise RegistryError for stages that one model does not have."""
    unknown = [stage for stage in arch.stages if stage not in (BASE, TUNED)]
    if unknown:
        raise RegistryError(
            f"{arch.name}: {arch.model} is one model and has no stage '{unknown[0]}'; leave 'stages' out, or "
            f"write 'base', the language model that it was made from, for the stages {BASE} and {TUNED}"
        )
    if BASE in arch.stages and arch.base is None:
        raise RegistryError(
            f"{arch.name}: stage '{BASE}' of {arch.model} needs 'base', the hub id (with 'base_revision') or "
            "the folder of the language model that it was made from"
        )


def _base(arch: Architecture, root: Path) -> Path | None:
    """The folder of the base language model, None for one of the hub."""
    if arch.base is None:
        return None
    folder = root / arch.base
    if folder.is_dir():
        if arch.base_revision is not None:
            raise RegistryError(
                f"{arch.name}: {arch.base} is a folder, which has no revision; take 'base_revision' out"
            )
        if not (folder / "config.json").is_file():
            raise RegistryError(f"{arch.name}: {folder} holds no config.json; name a model under 'base'")
        return folder
    if arch.base_revision is None:
        raise RegistryError(
            f"{arch.name}: {arch.base} is no folder; a hub model needs its 'base_revision' pinned"
        )
    return None


def _hashes(folder: Path) -> list[list[str]]:
    files = sorted(path for path in folder.glob("*") if path.is_file() and path.suffix != ".md")
    return [[f"{folder.name}/{path.name}", sha256(path)] for path in files]
