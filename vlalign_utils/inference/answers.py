"""Where the answers' tokens are in what a processor made of prompts with their answers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from vlalign_utils.driver.prompts import adds_special, check_items
from vlalign_utils.driver.turns import Turn, end_ids, write_turns
from vlalign_utils.driver.vlm import VLM


def answer_mask(
    vlm: VLM,
    inputs: Mapping[str, Tensor],
    prompts: Collection[str],
    images: Collection[Image.Image] | None,
    answers: Collection[str],
) -> Bool[Tensor, "batch tokens"]:
    """Positions of the answers' tokens, ends included, in what `vlm.prepare` made of these items.

    A token is the answer's when it holds one of its characters, or lies wholly behind the prompt that
    `generate` is given. Found from the tokenizer's character offsets, counted from the right, where no image
    is. Raises ValueError when the tokenizer has no offsets, or when the processor writes an answer otherwise
    than its tokenizer does.
    """
    asked, _, said = check_items(prompts, images, answers)
    assert said is not None  # answers are given
    turns = write_turns(vlm.processor, asked, said, images is not None, end_ids(vlm.model, vlm.tokenizer))
    ids = inputs["input_ids"]
    rows, n = ids.cpu().tolist(), ids.shape[1]
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (own, first, last) in enumerate(_places(vlm.processor, vlm.tokenizer, turns)):
        if rows[i][n - len(own) + first :] != own[first:]:
            raise ValueError(
                f"{type(vlm.processor).__name__} writes answers[{i}], {said[i]!r}, otherwise than its "
                "tokenizer does, or pads on the right: its tokens cannot be told from the prompt's"
            )
        mask[i, n - len(own) + first : n - len(own) + last] = True
    return mask.to(ids.device)


def answer_tokens(vlm: VLM, prompt: str, with_image: bool, answers: Collection[str]) -> list[list[int]]:
    """Token ids of each of several answers to one prompt, ends included, as `vlm.prepare` writes them.

    Raises ValueError when the tokens before an answer are not those before the others.
    """
    said = list(answers)
    turns = write_turns(
        vlm.processor, [prompt] * len(said), said, with_image, end_ids(vlm.model, vlm.tokenizer)
    )
    places = list(_places(vlm.processor, vlm.tokenizer, turns))
    ids, first, _ = places[0]
    if any(own[:begins] != ids[:first] for own, begins, _ in places):
        raise ValueError(
            f"{type(vlm.tokenizer).__name__} writes the end of the prompt {prompt!r} otherwise before each "
            "answer: they share no prompt"
        )
    return [own[begins:behind] for own, begins, behind in places]


Place = tuple[list[int], int, int]  # ids of a text, the first of its answer, and the first behind that


def _places(processor: Any, tokenizer: Any, turns: Sequence[Turn]) -> Iterator[Place]:
    """The end of each item's text as the tokenizer reads it, which the processor leaves as it is."""
    suffixed = turns[0].suffix is not None
    texts = [turn.text if turn.suffix is None else turn.suffix + tokenizer.eos_token for turn in turns]
    special = not suffixed and adds_special(processor, turns)
    if not getattr(tokenizer, "is_fast", False):
        for text, turn in zip(texts, turns, strict=True):
            yield _compared(tokenizer, text, turn, special)
        return
    read = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True)
    for ids, offsets, turn in zip(read["input_ids"], read["offset_mapping"], turns, strict=True):
        mine, covered = [], 0
        for i, (_, end) in enumerate(offsets):
            # From where the tokens before end: offsets may leave out a space that a token holds.
            if end > turn.answer or (end > turn.prompt and covered >= turn.prompt):
                mine.append(i)
            covered = max(covered, end)
        yield ids, mine[0], mine[-1] + 1


def _compared(tokenizer: Any, text: str, turn: Turn, special: bool) -> Place:
    """Without offsets: the answer's tokens are those that the text before it does not have."""

    def read(part: str, special: bool = False) -> list[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=special)["input_ids"]
        return ids

    whole, bare = read(text, special), read(text)
    ahead = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
    first = None
    for place in (turn.prompt, turn.answer):
        before = read(text[:place])
        same = next((i for i, (a, b) in enumerate(zip(before, bare, strict=False)) if a != b), len(before))
        if same == len(before) or place == turn.answer:
            first = same
            break
    if first is None or len(before) - first > 1:  # more than the one token that may hold both
        raise ValueError(
            f"{type(tokenizer).__name__} has no character offsets, and writes the prompt otherwise when an "
            "answer follows: load a fast tokenizer"
        )
    return whole, ahead + first, ahead + len(bare)
