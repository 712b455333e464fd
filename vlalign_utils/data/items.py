"""Items of evaluation and suites of them, whatever world their images show."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

Metric = Literal["answer", "choice", "mean choice", "caption", "cider"]
Split = Literal["train", "test"]
IN_FEW_WORDS = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Item:
    """A question with its image; `caption` says in words what the image shows.

    How an item is scored is its metric:

    - `answer`: the model's own (greedy) answer must be `answer`, which is one of `choices`.
    - `choice`: the likeliest of `choices`, read whole, must be `answer`.
    - `mean choice`: the same by the mean log probability of a token, for choices of different lengths.
    - `caption`: the model's own description is compared, attribute by attribute, with `answer`.
    - `cider`: it is compared by CIDEr with `answer` and `accepted`.

    For descriptions `choices` is empty. `accepted` holds what lenient scoring takes for right, too: synonyms,
    other spellings, other descriptions. `group` names what the blind rule is found over; items without an
    image ask about text.

    >>> from PIL import Image
    >>> from vlalign_utils import Item
    >>> red = Image.new("RGB", (48, 48), "red")
    >>> item = Item(red, "What colour?", "red", ("red", "blue"), group="colours", caption="It is red.")
    >>> item.chance, item.caption_version().prompt
    (0.5, 'It is red. What colour?')
    """

    image: Image.Image | None
    prompt: str
    answer: str
    choices: tuple[str, ...]
    group: str
    caption: str
    metric: Metric = "answer"
    guess: float | None = None  # what the best blind rule scores, where that is not 1 / choices
    accepted: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """Return the mean score of the best blind rule."""
        return 1 / len(self.choices) if self.guess is None else self.guess

    def caption_version(self) -> "Item":
        """Return the item that asks the same question about the caption instead of the image."""
        return replace(self, image=None, prompt=f"{self.caption} {self.prompt}")

    def in_few_words(self) -> "Item":
        """Return the item with the instruction that LLaVA-1.5 is given for short answers.

        For models that were trained with it, and answer in sentences without. Items that are chosen from
        candidates, or described, stay as they are. Source: Liu et al. 2023, arXiv 2310.03744.
        """
        return replace(self, prompt=f"{self.prompt}\n{IN_FEW_WORDS}") if self.metric == "answer" else self


Make = Callable[[int, np.random.Generator, Split], list[Item]]


@dataclass(frozen=True)
class Suite:
    """A named set of items. `vision_centric` says that an image is needed and no fact is.

    `groups` are those of its items that are scored apart, too: equal shares of them.
    """

    name: str
    mirrors: str  # the public benchmark that asks the same of real photographs
    asks: str
    metric: Metric
    vision_centric: bool
    make: Make
    groups: tuple[str, ...] = ()
