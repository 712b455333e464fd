"""Turn prompts, images and answers into model inputs with whatever processor the model came with."""

from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlalign_utils.driver.images import as_rgb, check_images
from vlalign_utils.driver.texts import check_texts
from vlalign_utils.driver.turns import Turn, write_turns


def prepare(
    processor: Any,
    prompts: Collection[str],
    images: Collection[Image.Image] | None = None,
    answers: Collection[str] | None = None,
    ends: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Left-padded inputs for one user turn per prompt, the answer and its end behind it when there is one.

    `images` are made upright RGB by `images.as_rgb`; how turns are written, and what `ends` are, says
    `turns.write_turns`. Raises TypeError for what is no list of texts or of PIL images; ValueError when there
    is no processor, when a list or a text is empty, when lengths differ, and as `write_turns` does.
    """
    if processor is None:
        raise ValueError("this VLM has no processor: load it with load_vlm, or pass processor=")
    asked, shown, said = check_items(prompts, images, answers)
    if shown is not None and isinstance(processor, PreTrainedTokenizerBase):
        raise ValueError(f"{type(processor).__name__} takes no images: give the VLM the full processor")
    turns = write_turns(processor, asked, said, shown is not None, ends)
    given: dict[str, Any] = {} if shown is None else {"images": [[as_rgb(image)] for image in shown]}
    if said is not None and turns[0].suffix is not None:
        given["suffix"] = said
    inputs = processor(
        text=[turn.text for turn in turns],
        **given,
        padding=True,
        padding_side="left",
        add_special_tokens=adds_special(processor, turns),
        return_tensors="pt",
    )
    return {name: value for name, value in inputs.items() if name != "labels"}


def check_items(
    prompts: Collection[Any],
    images: Collection[Any] | None,
    answers: Collection[Any] | None,
    some_images: bool = False,
) -> tuple[list[str], list[Any] | None, list[str] | None]:
    """Prompts, images and answers as lists of equal length; with `some_images` an item may have none.

    Raises TypeError or ValueError, naming the argument, as `check_texts` and `check_images` do, and when
    lengths differ.
    """
    asked = check_texts(prompts, "prompts", blank=images is not None)
    shown = None if images is None else check_images(images, some_images)
    said = None if answers is None else check_texts(answers, "answers")
    if not asked:
        raise ValueError("prompts is empty")
    for name, given in (("images", shown), ("answers", said)):
        if given is not None and len(given) != len(asked):
            raise ValueError(f"{len(asked)} prompts but {len(given)} {name}: give one each")
    return asked, shown, said


def adds_special(processor: Any, turns: Sequence[Turn]) -> bool:
    """True where the tokenizer has to add the first special token: not when the template wrote it itself."""
    bos = getattr(processor, "tokenizer", processor).bos_token
    return not (bos and turns[0].text.startswith(bos))
