"""A progress bar that is live in a terminal, one plain line in a log, and nothing on a page."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    size: Callable[[Item], int] = lambda item: 1,
    done: int = 0,
) -> Iterator[Item]:
    """Yield the items and show how far the loop is.

    In a terminal this is a tqdm bar with its rate and the time that remains. Elsewhere (a log, a notebook
    run by hand) `label: 40/40` goes to stderr once, after the last item; a loop left early says nothing.
    With TQDM_DISABLE set, as the pipeline does for its kernels, nothing is written: a page has no use for
    it. For a loop over batches `size` says how much each one counts, `total` is the sum of all, and `done`
    is what an earlier run had finished: neither enters the rate.
    """
    if total is None and isinstance(items, Sized):
        total = sum(map(size, items))
    if sys.stderr.isatty():
        with tqdm(desc=label, total=total, initial=done, unit="item", dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    for item in items:
        yield item
        done += size(item)
    if not os.environ.get("TQDM_DISABLE"):
        print(f"{label}: {done}/{done if total is None else total}", file=sys.stderr)
