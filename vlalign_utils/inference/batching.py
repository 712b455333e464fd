"""Batches of like length, and smaller ones from the moment that memory runs out."""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from vlalign_utils.driver.vlm import VLM

Result = TypeVar("Result")
logger = logging.getLogger("vlalign")


def length_sorted(
    lengths: Sequence[int] | Sequence[tuple[int, ...]],
    batch_size: int,
    kinds: Sequence[Hashable] | None = None,
    longest_first: bool = True,
) -> list[list[int]]:
    """Indices of the items in batches of like length; kinds are never mixed.

    A length of several numbers counts by the first, then by the next. The longest come first so that memory
    runs out at once or never, or last where the order of batches must stay that of earlier results. Raises
    ValueError when `batch_size` is below one, or when lengths and kinds are not equally many.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    if kinds is not None and len(kinds) != len(lengths):
        raise ValueError(f"{len(lengths)} lengths but {len(kinds)} kinds: give one each")
    apart: dict[Hashable, list[int]] = {}
    # Stable: equals keep their order.
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=longest_first):
        apart.setdefault(None if kinds is None else kinds[row], []).append(row)
    return [rows[i : i + batch_size] for rows in apart.values() for i in range(0, len(rows), batch_size)]


def exact_batches(vlm: VLM, batches: list[list[int]]) -> list[list[int]]:
    """Return the batches, or each item alone where padding or other items move an item's tokens.

    GIT and HunYuan-VL count positions through the padding or the batch. Whether a model does is found by its
    capability trial: once per model, and not before a batch holds two items. A model without a processor is
    given inputs that are already padded: its batches stay as they are.
    """
    joint = vlm.processor is not None and any(len(rows) > 1 for rows in batches)
    allowed = vlm.own_capabilities() if joint else None
    if allowed is not None and allowed.padding.works is False:
        return [[row] for rows in batches for row in rows]
    return batches


def backing_off(
    batches: Iterable[Sequence[int]], work: Callable[[list[int]], Result]
) -> Iterator[tuple[list[int], Result]]:
    """Yield the rows of each batch with what `work` gives for them.

    When memory runs out the batch is halved, and so is every later one that is larger; a warning says so
    once. Raises MemoryError, naming the item, when a batch of one does not fit.
    """
    limit: int | None = None
    for batch in batches:
        left = list(batch)
        while left:
            rows = left[:limit]
            result = _attempt(work, rows)
            if isinstance(result, _TooLarge):
                if len(rows) == 1:
                    raise MemoryError(
                        f"item {rows[0]} does not fit in memory even alone ({result.why}): make its image or "
                        "text smaller, load the model with a smaller dtype, or free the device"
                    )
                if limit is None:
                    logger.warning("a batch of %d does not fit in memory: trying smaller ones", len(rows))
                limit = len(rows) // 2
                clear_device_cache(garbage_collection=True)
                continue
            yield rows, result
            left = left[len(rows) :]


class _TooLarge:
    def __init__(self, error: Exception) -> None:
        self.why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _attempt(work: Callable[[list[int]], Result], rows: list[int]) -> Result | _TooLarge:
    # The exception must be gone before the next attempt: its traceback keeps every tensor of the forward.
    try:
        return work(rows)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return _TooLarge(error)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of a device, or of the machine, does not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error):
        return True
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
