"""Batches of every training step: in seeded order, several to a step, shared among processes."""

from collections.abc import Callable, Iterator, Sequence

from accelerate import Accelerator

from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference.scoring import Batch


def step_batches(
    epoch: Callable[[int], Sequence[Batch]],
    seed: int,
    steps: int,
    accumulate: int,
    accelerator: Accelerator,
    first: int,
) -> Iterator[tuple[tuple[int, Batch, float], ...]]:
    """Yield this process' share of the batches of steps `first` to `steps`.

    `epoch(number)` gives the batches of an epoch, each of which is seen once in it; `accumulate` of them make
    a step. Each comes with its number in the epoch and its part of the step's loss, in which every answer
    token of all processes counts the same.
    """
    left = _in_order(epoch, seed)
    for step in range(steps):
        chosen = [next(left) for _ in range(accumulate)]
        if step < first:
            continue
        tokens = [int((batch.answers >= 0).sum()) for _, batch in chosen]
        # Processes take the mean of their gradients, not the sum.
        shares = [accelerator.num_processes * n / sum(tokens) for n in tokens]
        parts = [(i, batch, share) for (i, batch), share in zip(chosen, shares, strict=True)]
        yield tuple(parts[accelerator.process_index :: accelerator.num_processes])


def _in_order(epoch: Callable[[int], Sequence[Batch]], seed: int) -> Iterator[tuple[int, Batch]]:
    order, number = rng(seed, "batch order"), 0
    while True:
        batches = epoch(number)
        yield from ((int(i), batches[i]) for i in order.permutation(len(batches)))
        number += 1
