"""The abstraction phase of a model: layers in which texts of one meaning in other words are arranged alike.

It is located on one half of the items, from the overlap of neighbours at equal depth in excess of a null,
such as that of bags of words; what is claimed of it is tested on the other half. Windows of equal width are
compared *before*, *inside* and *after* it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vlalign_utils.analysis import plateau

Span = tuple[int, int]


class Phase(NamedTuple):
    """Points `first..last` of the residual stream, inclusive, that hold the phase; `peak` is its highest.

    Point k enters layer k, so that these are also the layers that are given states of the phase.
    """

    first: int
    last: int
    peak: int

    @property
    def width(self) -> int:
        """Number of layers."""
        return self.last - self.first + 1


def locate(
    excess: Float[np.ndarray, "items points"], share: float = plateau.SHARE, before: float = 2 / 3
) -> Phase | None:
    """The run of layers around the first high point of an excess curve; None where none exceeds its start.

    Args:
        excess: overlap in excess of the null for each item, at every point of the residual stream: point k
            enters layer k, the last leaves the last layer.
        share: of the highest excess over that of point 0 that every layer of the phase keeps.
        before: share of the depth within which the phase is sought: near the end states become the next word.

    The curve is measured from its value at point 0, where a text is the mean of its word vectors.
    Raises ValueError for shares outside (0, 1].
    """
    if not 0 < before <= 1:
        raise ValueError(f"before is {before:g}, expected more than 0 and at most 1")
    means = excess.mean(axis=0)
    last = int(np.floor(before * (len(means) - 1)))
    rise = means[: last + 1] - means[0]
    if last < 1 or rise[1:].max() <= 0:
        return None
    (first,), (width,) = plateau.span(rise[None], 0.0, share)
    first = max(1, int(first))
    return Phase(first, int(first + width - 1), int(rise.argmax()))


def common_width(phase: Phase, n_layers: int) -> int:
    """Layers of the widest window that fits before, inside and after a phase of a model of `n_layers`.

    0 where there is no layer before or behind it: nothing can then be compared across it.
    """
    return max(0, min(phase.first, phase.width, n_layers - 1 - phase.last))


def by_region(phase: Phase, windows: Sequence[Span]) -> dict[str, list[int]]:
    """Numbers of the windows (first, last), inclusive, that lie wholly before, inside and after a phase.

    The effect of a region is the mean over its windows, all of one width.

    >>> by_region(Phase(2, 4, peak=3), [(0, 1), (1, 2), (2, 3), (3, 4), (5, 6)])
    {'before': [0], 'inside': [2, 3], 'after': [4]}
    """
    regions = {
        "before": (0, phase.first - 1),
        "inside": (phase.first, phase.last),
        "after": (phase.last + 1, max(last for _, last in windows)),
    }
    return {
        name: [i for i, (first, last) in enumerate(windows) if low <= first and last <= high]
        for name, (low, high) in regions.items()
    }
