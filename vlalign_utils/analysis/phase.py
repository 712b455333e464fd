"""The abstraction phase of a model: layers in which texts of one meaning in other words are arranged alike.

It is located on one half of the items, from the overlap of neighbours at equal depth in excess of a null,
such as that of bags of words; what is claimed of it is tested on the other half. Windows of equal width are
compared *before*, *inside* and *after* it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vlalign_utils.analysis import plateau
from vlalign_utils.evidence.claims import halves
from vlalign_utils.evidence.findings import shown
from vlalign_utils.evidence.intervals import Interval, bootstrap_mean

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


@dataclass(frozen=True)
class Search:
    """A phase that was located on one half of the items, and what the other half says of it.

    `tests` are the mean excess inside it: above the null, above point 0, and above the lowest later point
    (which the first half chose), with 95 % intervals. Empty where nothing was located or
    no layer lies behind.
    """

    candidate: Phase | None
    tests: dict[str, Interval]

    @property
    def phase(self) -> Phase | None:
        """The candidate where all tests are passed: the excess is no bag's, rises from words, and falls."""
        passed = bool(self.tests) and all(found.low > 0 for found in self.tests.values())
        return self.candidate if passed else None

    def told(self) -> str:
        """In a clause: where the phase is, with the overlap inside it, or why there is none."""
        if self.phase is None:
            return f"there is no abstraction phase: {self.missing()}"
        name, inside = next(iter(self.tests.items()))
        where = f"layers {self.phase.first} to {self.phase.last}, most in {self.phase.peak}"
        said = "texts that say the same in other words are alike"
        return f"{said} in {where}: their overlap {name} is {shown(inside)}"

    def missing(self) -> str:
        """In a clause, why there is no phase; empty where there is one."""
        if self.candidate is None:
            return "texts that say the same in other words are never more alike than as means of their words"
        if not self.tests:
            return "texts that say the same in other words stay alike up to the last layer"
        failed = next((name for name, found in self.tests.items() if found.low <= 0), None)
        return "" if failed is None else f"the overlap {failed} is {self.tests[failed]}, not above 0"


def search(excess: Float[np.ndarray, "items points"], seed: int = 0) -> Search:
    """Locate the phase on one half of the items, and test on the other that it is one.

    `excess` as in `locate`. Raises ValueError for fewer than two items.
    """
    first, second = halves(len(excess), seed)
    found = locate(excess[first])
    if found is None or not common_width(found, excess.shape[1] - 1):
        return Search(found, {})
    inside = excess[second, found.first : found.last + 1].mean(axis=1)
    lowest = found.last + 1 + int(excess[first, found.last + 1 :].mean(axis=0).argmin())
    against = {
        "above bags of words": inside,
        "above that of layer 0": inside - excess[second, 0],
        f"above that of layer {lowest}": inside - excess[second, lowest],
    }
    return Search(found, {name: bootstrap_mean(values, seed) for name, values in against.items()})


def common_width(phase: Phase, n_layers: int) -> int:
    """Layers of the widest window that fits before, inside and after a phase of a model of `n_layers`.

    0 where there is no layer before or behind it: nothing can then be compared across it.
    """
    return max(0, min(phase.first, phase.width, n_layers - 1 - phase.last))


def regions(phase: Phase, n_layers: int) -> dict[str, list[Span]]:
    """Windows (first, last), inclusive, that cover the layers before, inside and behind a phase.

    All have the widest width that fits in all three; a region takes as few of them as cover it, evenly
    spaced, so that some may overlap. The effect of a region is the mean over its windows. Raises ValueError
    where no layer lies before or behind the phase.

    >>> regions(Phase(3, 6, peak=5), 16)
    {'before': [(0, 2)], 'inside': [(3, 5), (4, 6)], 'behind': [(7, 9), (10, 12), (13, 15)]}
    """
    width = common_width(phase, n_layers)
    if not width:
        raise ValueError(f"no layer of {n_layers} lies on both sides of a phase in layers {phase[:2]}")
    spans = {
        "before": (0, phase.first - 1),
        "inside": (phase.first, phase.last),
        "behind": (phase.last + 1, n_layers - 1),
    }
    return {name: _cover(first, last, width) for name, (first, last) in spans.items()}


def _cover(first: int, last: int, width: int) -> list[Span]:
    several = -(-(last - first + 1) // width)
    starts = np.linspace(first, last - width + 1, several).round().astype(int).tolist()
    return [(start, start + width - 1) for start in starts]
