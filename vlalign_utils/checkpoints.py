"""Find a checkpoint, on disk or on the hub, and check by its file names that it can be loaded."""

from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vlalign_utils.paths import ROOT


def locate(name: str | Path, stage: str | None, revision: str | None) -> tuple[str, set[str]]:
    """Folder or hub id to load, and the names of its files; nothing is downloaded.

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
        if stage is not None:
            raise ValueError(f"stage={stage!r}: {name} is a hub id, only a folder can hold a chain of stages")
        return _on_hub(str(name), revision)
    if revision is not None:
        raise ValueError(f"revision={revision!r}: {folder} is a folder, only hub ids have revisions")
    if not (folder / "config.json").is_file():
        stages = sorted(path.parent.name for path in folder.glob("*/config.json"))
        if (stage or "tuned") not in stages:
            raise ValueError(
                f"{folder} has no stage {stage or 'tuned'!r}, it has: {', '.join(stages) or 'none'}"
            )
        folder /= stage or "tuned"
    elif stage is not None:
        raise ValueError(f"stage={stage!r}: {folder} is one model, not a chain of stages")
    return str(folder), {path.name for path in folder.iterdir()}


def _on_hub(name: str, revision: str | None) -> tuple[str, set[str]]:
    try:
        return name, set(list_repo_files(name, revision=revision))
    except GatedRepoError:
        raise ValueError(
            f"{name} is gated: accept its licence on its page, then run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"{name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{name} is neither a folder here nor a model on the hub") from None
    except OSError:
        try:
            folder = snapshot_download(name, revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            raise ValueError(f"{name} is not a folder here, and the hub cannot be reached") from None
        return folder, {path.name for path in Path(folder).iterdir()}


def check_files(source: str, files: set[str]) -> None:
    """Raise ValueError, naming what is missing, unless the files make a complete checkpoint."""
    if "config.json" not in files:
        raise ValueError(f"{source} has no config.json: it is not a transformers model")
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(
            f"{source} has no safetensors weights; pickled weights are not loaded, convert them first"
        )
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json"}:
        raise ValueError(f"{source} has no tokenizer")
    if not files & {"processor_config.json", "preprocessor_config.json"}:
        raise ValueError(
            f"{source} has no image processor: neither processor_config.json nor preprocessor_config.json"
        )
