"""Propose the intermediate band: the fewest layers in a row that hold half of what matters.

A band [start, stop) counts layers from 0; relative depth is start / L to stop / L.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vlalign_utils.evidence.intervals import RESAMPLES, Interval, resampled_means, rng

SHARE = 0.5  # of the total positive importance that a band must hold
LOOSE = 0.5  # of the band's width: where the interval of an end is as wide, the band is not settled
# The bands tuned in arXiv 2606.03871, in relative depth.
PAPER = {"LLaVA-7B": (6 / 32, 16 / 32), "OneVision-4B": (8 / 36, 25 / 36)}

Ratio = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of lengths: common, own, other


@dataclass(frozen=True, eq=False)
class Proposal:
    """A band [start, stop) of `n_layers`, the share of importance it holds, and each resample's band."""

    band: tuple[int, int]
    n_layers: int
    held: float
    resampled: Int[np.ndarray, "resamples 2"]
    n: int
    level: float = 0.95

    @property
    def ends(self) -> tuple[Interval, Interval]:
        """First layer, and first layer after, each with its percentile bootstrap interval."""
        start, stop = (self._interval(end, self.resampled[:, i]) for i, end in enumerate(self.band))
        return start, stop

    @property
    def depth(self) -> tuple[Interval, Interval]:
        """Both ends in relative depth, 0 to 1."""
        start, stop = (end.scaled(1 / self.n_layers) for end in self.ends)
        return start, stop

    @property
    def settled(self) -> bool:
        """Whether both ends are known to less than half the band's width: flat importance settles nothing."""
        loosest = max(end.high - end.low for end in self.ends)
        return loosest < LOOSE * (self.band[1] - self.band[0])

    def shared(self, depth: tuple[float, float]) -> Interval:
        """Part of the band that lies in another one, given in relative depth."""
        return self._compared(depth, lambda common, own, other: common / own)

    def iou(self, depth: tuple[float, float]) -> Interval:
        """Intersection over union with another band, given in relative depth."""
        return self._compared(depth, lambda common, own, other: common / (own + other - common))

    def _compared(self, depth: tuple[float, float], ratio: Ratio) -> Interval:
        low, high = depth
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"a band in relative depth needs 0 <= start < stop <= 1, got {low:g} to {high:g}"
            )
        bands = np.array([self.band, *self.resampled]) / self.n_layers
        common = np.maximum(0, np.minimum(bands[:, 1], high) - np.maximum(bands[:, 0], low))
        values = ratio(common, bands[:, 1] - bands[:, 0], np.full(len(bands), high - low))
        return self._interval(float(values[0]), values[1:])

    def _interval(self, value: float, drawn: np.ndarray) -> Interval:
        low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(float(value), float(low), float(high), self.n)

    def __str__(self) -> str:
        """The band in layers and depth, and whether the items settle it."""
        (start, stop), (low, high) = self.ends, self.depth
        sure = "settled" if self.settled else "NOT settled: other items could put its ends elsewhere"
        return (
            f"layers [{self.band[0]}, {self.band[1]}) of {self.n_layers}, depth {low.value:.2f} to "
            f"{high.value:.2f}; starts at {start.low:g} to {start.high:g}, stops at {stop.low:g} to "
            f"{stop.high:g}; {sure}"
        )


def find_band(
    importance: Float[np.ndarray, "items points"],
    alignment: Float[np.ndarray, "items_2 layers"] | None = None,
    windows: Sequence[tuple[int, int]] | None = None,
    share: float = SHARE,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Proposal:
    """Find the shortest band that holds `share` of the mean importance that is positive.

    Of several it is the one that holds the most, then the lowest; resamples choose among equals at random.

    Args:
        importance: of each point for each item, [items, points]; points are layers, or `windows`.
        alignment: of what enters each layer, [items, layers], of these or other items. A layer then counts by
            the mean of its shares of both: of importance, and of alignment above the line between its ends.
        windows: (first, last) layers, inclusive, of each point; a layer takes the mean of those that hold it.
        share: of the importance that the band must hold, in (0, 1].
        seed: of the resamples.
        resamples: of the items, for the interval of each end.
        level: of the intervals.

    Returns a `Proposal`: the band [start, stop), what it holds, and its intervals.

    Raises ValueError for shapes that do not fit, a share outside (0, 1], and when nothing is positive.

    >>> import numpy as np
    >>> from vlalign_utils import find_band
    >>> find_band(np.tile([0.0, 0.1, 0.6, 0.5, 0.0, 0.0], (8, 1)), share=0.9).band
    (2, 4)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share:g}, expected more than 0 and at most 1")
    measured = [importance if windows is None else per_layer(importance, windows)]
    n_layers = measured[0].shape[1]
    if alignment is not None:
        if alignment.shape[1] != n_layers:
            raise ValueError(
                f"alignment has {alignment.shape[1]} layers, importance has {n_layers}: "
                "give the alignment of what enters each layer"
            )
        measured.append(above_ends(alignment))
    for name, values in zip(("importance", "alignment above its ends"), measured, strict=False):
        if len(values) and not (values.mean(axis=0) > 0).any():
            raise ValueError(f"{name} is positive in no layer: there is no band to find")
    drawn = np.mean([_shares(resampled_means(values, seed, resamples)) for values in measured], axis=0)
    whole = np.mean([_shares(values.mean(axis=0)[None]) for values in measured], axis=0)
    ((start, stop),) = shortest(whole, share)
    equals = rng(seed, "bands of equal merit")
    return Proposal(
        band=(int(start), int(stop)),
        n_layers=n_layers,
        held=float(whole[0, start:stop].sum()),
        resampled=shortest(drawn, share, equals),
        n=len(importance),
        level=level,
    )


def per_layer(
    values: Float[np.ndarray, "items points"], windows: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "items layers"]:
    """Each layer's mean over the windows (first, last), inclusive, that hold it.

    Raises ValueError when windows are not one a point, or leave out a layer below the last.
    """
    if len(windows) != values.shape[1]:
        raise ValueError(f"{values.shape[1]} points but {len(windows)} windows: give one window a point")
    holds = np.zeros((len(windows), max(last for _, last in windows) + 1))
    for row, (first, last) in zip(holds, windows, strict=True):
        row[first : last + 1] = 1
    missing = (holds.sum(axis=0) == 0).nonzero()[0]
    if len(missing):
        raise ValueError(f"no window holds layer {missing[0]}: nothing is known of its importance")
    return values @ (holds / holds.sum(axis=0))


def above_ends(alignment: Float[np.ndarray, "items layers"]) -> Float[np.ndarray, "items layers"]:
    """What lies above the straight line from an item's first value to its last."""
    along = np.linspace(0, 1, alignment.shape[1])
    return alignment - (alignment[:, :1] * (1 - along) + alignment[:, -1:] * along)


def _shares(means: Float[np.ndarray, "rows layers"]) -> Float[np.ndarray, "rows layers"]:
    """Each layer's part of what is positive; equal parts where nothing is."""
    positive = np.maximum(means, 0)
    positive[positive.sum(axis=1) == 0] = 1.0
    return positive / positive.sum(axis=1, keepdims=True)


def shortest(
    weights: Float[np.ndarray, "rows layers"], share: float, equals: np.random.Generator | None = None
) -> Int[np.ndarray, "rows 2"]:
    """For each row, whose weights sum to 1, its shortest band [start, stop) that holds `share`.

    Of several the one that holds the most; of equal ones the lowest, or one drawn with `equals`.
    """
    n_layers = weights.shape[1]
    bands = np.array(
        [(a, a + width) for width in range(1, n_layers + 1) for a in range(n_layers - width + 1)]
    )
    until = np.pad(weights.cumsum(axis=1), ((0, 0), (1, 0)))
    held = (until[:, bands[:, 1]] - until[:, bands[:, 0]]).round(9)  # sums that are equal but for rounding
    drawn = 0.0 if equals is None else equals.uniform(0, 1e-10, held.shape)
    # A width counts for more than all that can be held.
    merit = np.where(held >= round(share, 9), held + drawn - 2.0 * (bands[:, 1] - bands[:, 0]), -np.inf)
    return bands[merit.argmax(axis=1)]
