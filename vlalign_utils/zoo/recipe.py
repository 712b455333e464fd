"""A chain's recipe: architecture and schedules, read from zoo/recipes/<chain>.yml."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from vlalign_utils.evidence.strict import Closed
from vlalign_utils.tuning.train_loop import Schedule
from vlalign_utils.zoo.architecture import Shell
from vlalign_utils.zoo.parts_recipe import PartsRecipe

Kind = TypeVar("Kind", bound=Closed)
STAGES = ("base", "aligned", "tuned")  # those saved as model folders, in order


class Stages(Closed):
    """The schedule of each stage, in order of training."""

    vision: Schedule
    base: Schedule
    aligned: Schedule
    tuned: Schedule


class Recipe(Shell):
    """Recipe of a chain: what decides its weights, besides the code."""

    seed: int
    embedding_std: float = Field(gt=0)  # of the word embeddings, before any scale the model applies to them
    stages: Stages


def read_recipe(path: Path) -> Recipe:
    """Read and check the recipe of a chain that is trained from scratch.

    What it leaves out is that of the recipe it says it is `like`. Raises FileNotFoundError or ValueError
    naming the file and the field.
    """
    return _read(path, Recipe)


def read_any_recipe(path: Path) -> Recipe | PartsRecipe:
    """Read and check a recipe of either kind: one that names a `tower` is that of a chain from parts.

    Raises as `read_recipe` does.
    """
    return _read(path, PartsRecipe) if "tower" in _fields(path) else _read(path, Recipe)


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(_fields(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name}: {field}: {first['msg']}") from None


def _fields(path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yml"))) or "none"
        raise FileNotFoundError(f"there is no recipe {path.name} in {path.parent.name}/; there are: {have}")
    try:
        own: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(own, dict):
        raise ValueError(f"{path.name} must be a mapping of fields")
    like = own.pop("like", None)
    if like is None:
        return own
    if like in seen:
        raise ValueError(f"{path.name}: like: {like} leads back to itself")
    return _fields(path.with_name(f"{like}.yml"), (*seen, like)) | own
