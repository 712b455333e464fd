"""Source of a loaded model: enough to load it again, or to notice that it changed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseWeights:
    """Base language model whose weights a vision-language model has."""

    name: str
    revision: str | None
    fingerprint: str | None
    replaced: int  # weights taken from it, whole or in part
    kept: tuple[str, ...]  # language model weights, or rows of them, that stayed those of the other model


@dataclass(frozen=True)
class Source:
    """Checkpoint, and how it was loaded."""

    name: str  # hub id, folder, or the class of a model that was passed as an object
    revision: str | None  # commit, for a hub id
    fingerprint: str | None  # SHA-256 of the files, for a folder
    stage: str | None
    dtype: str
    attention: str | None  # of the language model
    quantization: str | None = None
    base: BaseWeights | None = None
