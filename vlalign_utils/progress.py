"""A progress bar that is live in a terminal and one plain line on a page."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show how far the loop is.

    In a terminal this is a tqdm bar. Elsewhere (a notebook, a log) it prints `label: 40/40` once, after
    the last item: a rate or a time there would differ at every rerun. A loop left early prints nothing.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total)
        return
    done = 0
    for item in items:
        yield item
        done += 1
    print(f"{label}: {done}/{done if total is None else total}")
