"""Residual streams of many items, pooled over groups of tokens: one vector per item and layer."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vlalign_utils.driver.prompts import check_items
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.answers import answer_mask
from vlalign_utils.inference.batching import backing_off, exact_batches, length_sorted
from vlalign_utils.inference.fingerprints import store_key
from vlalign_utils.inference.pooling import check_pooling, pooled_forward
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.store import ActivationStore
from vlalign_utils.inference.token_groups import (
    GROUPS,
    Random,
    Tokens,
    last_true,
    masks,
    named,
    read_tokens,
)

__all__ = [
    "GROUPS",
    "Random",
    "Tokens",
    "capture",
    "collect",
    "last_true",
    "token_masks",
]

Mask = Bool[Tensor, "batch tokens"]
Groups = Sequence[str | Random] | Mapping[str, Any]  # a mapping also holds functions and masks
Pooled = dict[str, Float[Tensor, "layers items d"]]
Images = Collection[Image.Image | None] | Collection[Image.Image] | None
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def token_masks(vlm: VLM, run: Run, groups: Groups) -> dict[str, Mask]:
    """Positions of each group in a recorded batch; padding belongs to none.

    Raises ValueError for an unknown group, and for one that is empty in some item of the batch.
    """
    found = named(groups)
    return masks(found, _tokens(vlm, run.inputs, run=run))


def capture(
    vlm: VLM,
    inputs: Mapping[str, Any],
    groups: Groups,
    pooling: str | Mapping[str, str] = "mean",
    answer: Mask | None = None,
    rows: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Pool the states of one batch of model inputs, by one forward that keeps nothing else.

    Layer k is what enters decoder layer k; the last is what leaves the last layer, before the final norm.

    Args:
        vlm: the model.
        inputs: model inputs, as `vlm.prepare` makes them.
        groups: names in `GROUPS`, `Random` groups, or a mapping from names to those, to functions of
            `Tokens` and to boolean masks [batch, tokens].
        pooling: "mean", "last" (the group's last token), "max" or "none"; a mapping gives each group its own.
        answer: positions of appended answers, [batch, tokens].
        rows: numbers of the items, for messages and for random groups.
        dtype: of the states.

    Returns for each group the states [layers, batch, d] on the CPU; with pooling "none" a list with those
    [layers, tokens, d] of each item.

    Raises TypeError or ValueError, before the model runs, for what does not fit.

    >>> from vlalign_utils import capture, load_suite, load_vlm
    >>> vlm, item = load_vlm("zoo/llava"), load_suite("attributes", 1)[0]
    >>> states = capture(vlm, vlm.prepare([item.prompt], [item.image]), ["image", "last"])
    >>> states["image"].shape == (vlm.n_layers + 1, 1, vlm.d_model)
    True
    """
    found = named(groups)
    how = check_pooling(pooling, found)
    _check_dtype(dtype)
    inputs = {k: v.to(vlm.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    selected = masks(found, _tokens(vlm, inputs, answer, rows))
    states: dict[str, Any] = dict(pooled_forward(vlm.anatomy, inputs, selected, how, dtype))
    for group, mask in selected.items():
        if how[group] == "none":
            states[group] = list(states[group].split(mask.sum(dim=-1).tolist(), dim=1))
    return {group: states[group] for group in found}


def _tokens(
    vlm: VLM,
    inputs: Mapping[str, Any],
    answer: Mask | None = None,
    rows: Sequence[int] | None = None,
    run: Run | None = None,
) -> Tokens:
    image = vlm.image_mask(inputs, run)
    return read_tokens(inputs, image, answer, rows, vlm.pixel_tokens(inputs, run))


def collect(
    vlm: VLM,
    prompts: Collection[str],
    images: Images,
    groups: Groups,
    batch_size: int = 64,
    label: str = "states",
    *,
    answers: Collection[str] | None = None,
    pooling: str | Mapping[str, str] = "mean",
    dtype: torch.dtype = torch.float32,
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Pool the states of every item; items run in batches of like length and come back in their order.

    Batches get smaller once memory runs out, and hold one item where padding would move an item's tokens.

    Args:
        vlm: a model with its processor.
        prompts: one text for each item.
        images: one image or None for each item, or None for text alone.
        groups: as in `capture`, without masks.
        batch_size: items in one forward.
        label: of the progress bar.
        answers: text that is appended to each prompt as the answer.
        pooling: as in `capture`.
        dtype: of the states.
        store: folder in which every finished batch is kept: an interrupted call goes on where it stopped, a
            repeated one only reads, and no more than one batch is held in memory.

    Returns for each group the states [layers, items, d] on the CPU, with one layer more than the model has.

    Raises TypeError or ValueError, before the model runs, for what does not fit together; MemoryError when a
    batch of one does not fit.

    >>> from vlalign_utils import collect, load_suite, load_vlm
    >>> vlm, items = load_vlm("zoo/llava"), load_suite("attributes", 3)
    >>> states = collect(vlm, [i.prompt for i in items], [i.image for i in items], ["image"])
    >>> states["image"].shape == (vlm.n_layers + 1, 3, vlm.d_model)
    True
    """
    found = named(groups)
    how = check_pooling(pooling, found)
    _check_dtype(dtype)
    prompts, pictures, answers = _check_items(vlm, prompts, images, answers, found)

    def work(rows: list[int]) -> dict[str, Any]:
        asked = [prompts[i] for i in rows]
        shown = [image for i in rows if (image := pictures[i]) is not None] or None
        said = None if answers is None else [answers[i] for i in rows]
        inputs = vlm.prepare(asked, shown, said)
        answer = None if said is None else answer_mask(vlm, inputs, asked, shown, said)
        return capture(vlm, inputs, found, how, answer, rows, dtype)

    lengths = [len(ids) for ids in vlm.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    # A larger image may take more tokens: how many, only the processor knows.
    areas = [0 if image is None else image.width * image.height for image in pictures]
    blind = [image is None for image in pictures]
    batches = length_sorted(list(zip(areas, lengths, strict=True)), batch_size, blind)
    if store is None:
        return _in_memory(exact_batches(vlm, batches), work, label, len(prompts), how)
    if "none" in how.values():
        raise ValueError(
            'pooling "none" gives items of unequal size, which a store cannot hold: leave store= out'
        )
    key = store_key(vlm, prompts, pictures, answers, found, how, dtype)
    with ActivationStore(store, key, len(prompts)) as kept:
        done = kept.finished
        left = [[row for row in rows if row not in done] for rows in batches]
        runs = backing_off(exact_batches(vlm, [rows for rows in left if rows]), work)
        for rows, states in progress(runs, label, len(prompts), _rows_of, len(done)):
            kept.append(rows, states)
        states = kept.states()
        return {group: states[group] for group in found}


def _in_memory(
    batches: list[list[int]], work: Any, label: str, n: int, how: Mapping[str, str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for rows, states in progress(backing_off(batches, work), label, n, _rows_of):
        for group, value in states.items():
            if how[group] == "none":
                result.setdefault(group, [None] * n)
                for row, item in zip(rows, value, strict=True):
                    result[group][row] = item.clone()  # not a view that would keep its whole batch
            else:
                if group not in result:
                    result[group] = value.new_empty((len(value), n, value.shape[-1]))
                result[group][:, rows] = value
    return result


def _rows_of(finished: tuple[list[int], Any]) -> int:
    return len(finished[0])


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(map(str, DTYPES))}")


def _check_items(
    vlm: VLM,
    prompts: Collection[str],
    images: Images,
    answers: Collection[str] | None,
    found: Mapping[str, Any],
) -> tuple[list[str], list[Image.Image | None], list[str] | None]:
    if vlm.processor is None:
        raise ValueError("this VLM has no processor: load it with load_vlm, or pass processor=")
    asked, shown, said = check_items(prompts, images, answers, some_images=True)
    for name, group in found.items():
        if isinstance(group, Tensor):
            raise TypeError(f"group {name!r} is a mask of one batch: give collect a function of Tokens")
        asks = group is GROUPS["answer"] or (isinstance(group, Random) and "answer" in (group.like, group.of))
        if asks and answers is None:
            raise ValueError(f"group {name!r} needs answers=, the text that follows each prompt")
    return asked, [None] * len(asked) if shown is None else shown, said
