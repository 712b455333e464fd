"""Find a checkpoint, on disk, on the hub or in its cache, and check by its file names that it is whole."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from huggingface_hub import auth_check, model_info, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vlalign_utils.paths import ROOT

LOG = logging.getLogger("vlalign")
# What the hub's client raises without a network: its HTTP library has a base class of its own.
UNREACHABLE: tuple[type[Exception], ...] = (OSError, cast(type[Exception], HfHubHTTPError.__bases__[0]))
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """One model: where it is, which files it has there, and which stage of a pair or chain was asked for."""

    name: str  # hub id, or folder
    files: frozenset[str]
    folder: Path | None  # None while it is only on the hub
    revision: str | None = None  # commit of the hub's repository
    stage: str | None = None
    in_chain: bool = False
    offline: bool = False  # the hub's cache, with what it happens to hold


def locate(name: str | Path, stage: str | None = None, revision: str | None = None) -> Checkpoint:
    """Folder, or hub id with its exact commit; nothing is downloaded.

    Raises FileNotFoundError for a missing folder, ValueError for a stage, revision or hub id that is
    not there.
    """
    folder = next((path for path in (Path(name).expanduser(), ROOT / name) if path.is_dir()), None)
    if folder is None:
        parts = Path(name).parts
        if (
            len(parts) != 2
            or parts[0] in ("..", "~", "/")
            or any((root / parts[0]).is_dir() for root in (Path(), ROOT))
        ):
            raise FileNotFoundError(f"{name}: no such folder in {Path.cwd()} or {ROOT}")
        _check_stage_of_one(str(name), stage)
        return _on_hub(str(name), revision, stage)
    if revision is not None:
        raise ValueError(f"revision={revision!r}: {folder} is a folder, only hub ids have revisions")
    stages = sorted(path.parent.name for path in folder.glob("*/config.json"))
    in_chain = bool(stages) and not (folder / "config.json").is_file()
    if in_chain:
        stage = stage or "tuned"
        if stage not in stages:
            raise ValueError(f"{folder} has no stage {stage!r}, it has: {', '.join(stages)}")
        folder /= stage
    else:
        _check_stage_of_one(str(folder), stage)
    files = frozenset(path.name for path in folder.iterdir())
    return Checkpoint(str(folder), files, folder, None, stage, in_chain)


def _check_stage_of_one(name: str, stage: str | None) -> None:
    if stage not in (None, "base", "tuned"):
        raise ValueError(
            f"stage={stage!r}: {name} is one model, not a chain of stages; expected 'tuned', which is the "
            "model itself, or 'base', the same with the weights of its base language model"
        )


def _on_hub(name: str, revision: str | None, stage: str | None) -> Checkpoint:
    try:
        info = model_info(name, revision=revision)
        if info.gated:
            auth_check(name)
    except GatedRepoError:
        raise ValueError(
            f"{name} is gated: accept its licence on its page, then run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"{name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{name} is neither a folder here nor a model on the hub") from None
    except HFValidationError:
        raise ValueError(f"{name!r} is neither a folder here nor a valid hub id, owner/name") from None
    except UNREACHABLE as error:
        return _in_cache(name, revision, stage, error)
    if revision is None:
        LOG.warning('%s is not pinned: took revision="%s"; pass it to get the same again', name, info.sha)
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    return Checkpoint(name, files, None, info.sha, stage)


def _in_cache(name: str, revision: str | None, stage: str | None, error: BaseException) -> Checkpoint:
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pinned = "" if revision is None else f" at revision {revision!r}"
        raise ValueError(
            f"{name} is not a folder here, the hub cannot be reached ({type(error).__name__}), and the "
            f"cache does not hold it{pinned}"
        ) from None
    LOG.warning("the hub cannot be reached: %s is taken from the cache, revision %s", name, folder.name)
    files = frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Checkpoint(name, files, folder, folder.name, stage, offline=True)


def check_weights(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the weights are in safetensors files under the names that are loaded."""
    if not checkpoint.files & {WEIGHTS, INDEX}:
        _refuse(
            checkpoint,
            "no safetensors weights; pickled weights are not loaded, convert them first to "
            f"{WEIGHTS}, or to shards with {INDEX}",
        )


def check_files(checkpoint: Checkpoint, processor: bool = True) -> None:
    """Raise ValueError, naming what is missing, unless the files make a complete checkpoint.

    With `processor` False, neither a tokenizer nor an image processor is asked for.
    """
    files = checkpoint.files
    if "config.json" not in files:
        _refuse(checkpoint, "no config.json: it is not a transformers model")
    check_weights(checkpoint)
    if not processor:
        return
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json"}:
        _refuse(checkpoint, "no tokenizer: pass processor=")
    if not files & {"processor_config.json", "preprocessor_config.json"}:
        _refuse(
            checkpoint,
            "no image processor, neither processor_config.json nor preprocessor_config.json: pass processor=",
        )


def _refuse(checkpoint: Checkpoint, lack: str) -> NoReturn:
    if checkpoint.offline:
        raise ValueError(
            f"the hub cannot be reached, and the cache holds no whole copy of {checkpoint.name}: "
            f"it has {lack}"
        )
    raise ValueError(f"{checkpoint.name} has {lack}")


def fetch_small(checkpoint: Checkpoint, code: bool = False) -> Path:
    """Folder with everything but weights, downloaded if need be; with `code`, Python files too."""
    return _fetch(checkpoint, [*_SMALL, "*.py"] if code else _SMALL)


def fetch_weights(checkpoint: Checkpoint, files: Iterable[str]) -> Path:
    """Folder that holds the given safetensors files, downloaded if need be."""
    wanted = sorted(files)
    folder = _fetch(checkpoint, wanted)
    absent = [name for name in wanted if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{checkpoint.name} lacks {absent[0]}: the download broke off, call again to resume")
    return folder


def _fetch(checkpoint: Checkpoint, patterns: list[str]) -> Path:
    if checkpoint.folder is not None:
        return checkpoint.folder
    try:
        return Path(snapshot_download(checkpoint.name, revision=checkpoint.revision, allow_patterns=patterns))
    except UNREACHABLE as error:
        raise ValueError(
            f"{checkpoint.name}: the download broke off ({type(error).__name__}), call again to resume"
        ) from None
