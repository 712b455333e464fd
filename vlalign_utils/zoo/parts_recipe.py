"""Recipe of a chain around pretrained parts: tower, language model, and what is trained on them."""

from typing import Any

from pydantic import Field

from vlalign_utils.evidence.strict import Closed
from vlalign_utils.loading.stage_file import Source
from vlalign_utils.tuning.train_loop import Schedule


class PartsShell(Closed):
    """The model's class around the parts, and how its processor writes an image."""

    # for AutoConfig.for_model, without the language model's; an image token stands for its id
    model: dict[str, Any]
    parts: dict[str, Source]  # by the name of their module in the model
    # spare special tokens of the language model by the names that the processor's class has for them
    tokens: dict[str, str] = Field(default_factory=dict)
    image_text: str  # what the chat template writes for an image
    image_processor: dict[str, Any]  # as in processor_config.json, with `image_processor_type`
    processor: dict[str, Any]  # what it takes besides its parts, and `processor_class`


class PartsStages(Closed):
    """The schedule of each stage that is trained, in order; `base` is the parts as they come."""

    vision: Schedule
    aligned: Schedule
    tuned: Schedule


def _unset(value: Any) -> bool:
    return value is None


class PartsRecipe(Closed):
    """Recipe of a chain from parts: what decides its weights, besides parts and code.

    A field that is not set is left out of what is written: checkpoints are named after that.
    """

    seed: int
    side: int = Field(gt=0)  # of the square image that the tower is given, in pixels
    tower: str  # the chain whose stage `vision` trains the tower: this one, or one that has trained it before
    tower_trained: str  # pattern of the whole names of the tower's parameters that stage `vision` trains
    # the chain whose tower that of stage `vision` learns from, besides names; None for names alone
    teacher: str | None = Field(default=None, exclude_if=_unset)
    # None for FastVLM's class around SmolLM2 and EfficientNet
    shell: PartsShell | None = Field(default=None, exclude_if=_unset)
    rank: int = Field(gt=0)  # of LoRA in every linear module of the language model
    stages: PartsStages
