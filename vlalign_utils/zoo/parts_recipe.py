"""Recipe of a chain around pretrained parts: tower, language model, and what is trained on them."""

from pydantic import Field

from vlalign_utils.evidence.strict import Closed
from vlalign_utils.tuning.train_loop import Schedule


class PartsStages(Closed):
    """The schedule of each stage that is trained, in order; `base` is the parts as they come."""

    vision: Schedule
    aligned: Schedule
    tuned: Schedule


class PartsRecipe(Closed):
    """Recipe of a chain from parts: what decides its weights, besides parts and code."""

    seed: int
    side: int = Field(gt=0)  # of the square image that the tower is given, in pixels
    tower: str  # the chain whose stage `vision` trains the tower: this one, or one that has trained it before
    tower_trained: str  # pattern of the whole names of the tower's parameters that stage `vision` trains
    rank: int = Field(gt=0)  # of LoRA in every linear module of the language model
    stages: PartsStages
