"""A chain's recipe: architecture and schedules, read from zoo/recipes/<chain>.yml."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

STAGES = ("base", "aligned", "tuned")  # those saved as model folders, in order


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(_Strict):
    """How long and how fast to train a stage: `lr` is the peak, reached after `warmup` of the steps."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)


class PictureCount(_Strict):
    """How many training pictures are drawn."""

    scenes: int = Field(gt=0)
    digits: int = Field(gt=0)


class Stages(_Strict):
    """The schedule of each stage, in order of training."""

    vision: Schedule
    base: Schedule
    aligned: Schedule
    tuned: Schedule


class Recipe(_Strict):
    """All that decides a chain's weights, besides the code."""

    seed: int
    pictures: PictureCount
    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    contrast_config: dict[str, Any]
    embedding_std: float = Field(gt=0)
    stages: Stages


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises FileNotFoundError or ValueError naming the file and the field."""
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yml"))) or "none"
        raise FileNotFoundError(f"there is no recipe {path.name} in {path.parent.name}/; there are: {have}")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name}: {field}: {first['msg']}") from None
