"""Stages kept as what was trained: folders with a model's settings, the weights of its own, and stage.json.

stage.json says which pretrained parts the other weights come from, and the SHA-256 of every file.
"""

import os
import shutil
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.evidence.strict import Strict
from vlalign_utils.loading.parts import find_part
from vlalign_utils.paths import atomic_folder, sha256

STAGE = "stage.json"
SETTINGS = ("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja")
LORA = "lora.safetensors"
PRECISION = torch.bfloat16  # of every file: that of the parts


class Source(Strict):
    """A module of a pretrained part, by its name in the model that the part's folder holds."""

    part: str
    module: str


class Lora(Strict):
    """Matrices `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank].

    The module's weight is W + alpha / rank * B A. Source: Hu et al. 2021, arXiv 2106.09685.
    """

    file: str
    sha256: str
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)


class Stage(Strict):
    """What a model is made of.

    `settings` are the SHA-256 of the model's settings, by file. A weight comes from one of the files of
    `weights`, which are paths from the stage's folder with their SHA-256, else from the part that `parts`
    names for its module. What has neither is drawn from `seed` as its class draws it.
    LoRA matrices are added last. `tokens` are spare special tokens of a part's tokenizer by the names that
    they have in this model.
    """

    parts: dict[str, Source]  # by the name of the module in this model
    weights: dict[str, str] = Field(default_factory=dict)
    lora: Lora | None = None
    seed: int | None = None
    settings: dict[str, str] = Field(default_factory=dict)
    tokens: dict[str, str] = Field(default_factory=dict, exclude_if=lambda tokens: not tokens)


def read_stage(folder: Path) -> Stage:
    """Read the stage.json of a folder and check that the files it names are those that were written.

    Raises ValueError in one sentence that names the file or the field at fault.
    """
    path = folder / STAGE
    try:
        stage = Stage.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "it"
        raise ValueError(f"{path}: {field}: {first['msg']}") from None
    for source in stage.parts.values():
        find_part(source.part)
    lora = {stage.lora.file: stage.lora.sha256} if stage.lora else {}
    for name, expected in (dict.fromkeys(SETTINGS) | stage.settings | stage.weights | lora).items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing: restore it from git, or train the stage again")
        if expected is not None and sha256(file) != expected:
            raise ValueError(f"{file} is not the file that {path} was written with: restore it from git")
    return stage


def write_stage(
    folder: Path,
    model: Any,
    processor: Any,
    parts: Mapping[str, Source],
    *,
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    shared: Collection[Path] = (),
    lora: Mapping[str, Tensor] | None = None,
    alpha: float = 1.0,
    seed: int | None = None,
    tokens: Mapping[str, str] | None = None,
) -> None:
    """Write a stage, whole or not at all, in place of what the folder held.

    Args:
        folder: the stage's place, such as zoo/smollm/tuned.
        model: any model of its configuration; its weights are not read.
        processor: the model's processor; its tokenizer is that of a part.
        parts: pretrained parts by the name of their module in the model.
        weights: tensors by their names in the model, for each safetensors file of the folder.
        shared: files elsewhere that hold tensors by their names in the model, such as a tuned tower.
        lora: matrices by name, as `Lora` has them.
        alpha: scale of the LoRA matrices times their rank.
        seed: what weights without a source are drawn from.
        tokens: spare special tokens of a part's tokenizer by the names that they have in this model.

    Raises:
        WriteError: when the folder cannot be written.
    """
    with atomic_folder(folder) as partial, without_messages():
        config = deepcopy(model.config)
        for settings in (config, *(getattr(config, name) for name in config.sub_configs)):
            settings.dtype = torch.float32  # to be computed with, whatever the training was in
        for settings in (config, model.generation_config, processor):
            settings.save_pretrained(partial)
        for path in partial.iterdir():
            if path.name not in SETTINGS:  # the tokenizer's
                path.unlink()
        files = {name: partial / name for name in weights or {}}
        for name, tensors in (weights or {}).items():
            _save(tensors, partial / name)
        files |= {os.path.relpath(path, folder): path for path in shared}
        low_rank = None
        if lora is not None:
            _save(lora, partial / LORA)
            rank = next(weight.shape[0] for name, weight in lora.items() if name.endswith("lora_A.weight"))
            low_rank = Lora(file=LORA, sha256=sha256(partial / LORA), rank=rank, alpha=alpha)
        sums = {name: sha256(path) for name, path in files.items()}
        settings_sums = {name: sha256(partial / name) for name in SETTINGS}
        stage = Stage(
            parts=dict(parts),
            weights=sums,
            lora=low_rank,
            seed=seed,
            settings=settings_sums,
            tokens=dict(tokens or {}),
        )
        (partial / STAGE).write_text(stage.model_dump_json(indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    kept = {name: tensor.detach().cpu().to(PRECISION).contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": "pt"})
