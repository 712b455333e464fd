"""Intervals and nulls, all seeded and vectorised over curves: resampling is over items, never over layers."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

RESAMPLES = 2000
PERMUTATIONS = 200


class Interval(NamedTuple):
    """A number with its confidence interval and the number of items behind it.

    `value` lies between `low` and `high`, in one unit; `n` counts the items that were resampled. It is a
    plain tuple: nothing is checked here, but `Report.value` refuses one that is not finite or not in order.

    >>> from vlalign_utils import Interval
    >>> loss = Interval(0.25, 0.1875, 0.3125, n=120)
    >>> print(loss, loss.scaled(100).value)
    0.250 [0.188, 0.312] 25.0
    """

    value: float
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> "Interval":
        """The interval in another unit; `factor` is positive."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n)

    def __str__(self) -> str:
        """Three decimals: what notebooks print must not change between machines."""
        value, low, high = (round(x, 3) + 0.0 for x in self[:3])  # + 0.0 turns -0.0 into 0.0
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"


class Band(NamedTuple):
    """A curve with its pointwise confidence interval; every array has one entry per point."""

    value: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]
    n: int

    def at(self, point: int) -> Interval:
        """The interval at one point of the curve."""
        return Interval(float(self.value[point]), float(self.low[point]), float(self.high[point]), self.n)


class Null(NamedTuple):
    """A statistic beside its values when the pairing of items is destroyed."""

    observed: Float[np.ndarray, "*stat"]
    mean: Float[np.ndarray, "*stat"]
    high: Float[np.ndarray, "*stat"]  # 95th percentile of the null
    p: Float[np.ndarray, "*stat"]
    permutations: int


def rng(seed: int, purpose: str) -> np.random.Generator:
    """An independent stream for each purpose, so that one analysis' draws never shift another's."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def resampled_means(
    values: Float[np.ndarray, "items points"], seed: int = 0, resamples: int = RESAMPLES
) -> Float[np.ndarray, "resamples points"]:
    """Means of `resamples` bootstrap samples of the items; all points share the same samples.

    Raises ValueError when there is no item or a value is not finite.
    """
    if len(values) == 0:
        raise ValueError("there are no items to resample")
    if not np.isfinite(values).all():
        raise ValueError("values to resample must be finite; found NaN or infinity")
    n = len(values)
    # How often each item is drawn is all a mean needs: one matrix product instead of a gather.
    counts = rng(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
    return counts.astype(np.float64) @ values.astype(np.float64) / n


def bootstrap_curve(
    values: Float[np.ndarray, "items points"],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Band:
    """Mean over items at each point with its percentile bootstrap interval."""
    means = resampled_means(values, seed, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(values.mean(axis=0, dtype=np.float64), low, high, len(values))


def bootstrap_mean(
    values: Float[np.ndarray, " items"], seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Mean over items with its percentile bootstrap interval. For a paired comparison pass `a - b`."""
    return bootstrap_curve(values[:, None], seed, resamples, level).at(0)


def bootstrap_peak(
    values: Float[np.ndarray, "items points"],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Position (0-based) of the largest mean, with its percentile bootstrap interval.

    The first of several equal maxima counts.
    """
    peaks = resampled_means(values, seed, resamples).argmax(axis=1)
    low, high = np.quantile(peaks, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean(axis=0).argmax()), float(low), float(high), len(values))


def bootstrap_ratio(
    above: Float[np.ndarray, " items"],
    below: Float[np.ndarray, " items"],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Ratio of two means over the same items, with its percentile bootstrap interval.

    Raises ValueError when the lower mean is not positive in every resample: the ratio then means nothing.
    """
    means = resampled_means(np.stack([above, below], axis=1), seed, resamples)
    if means[:, 1].min() <= 0:
        raise ValueError("the mean to divide by is not clearly above 0, so the ratio has no meaning")
    low, high = np.quantile(means[:, 0] / means[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(above.mean() / below.mean()), float(low), float(high), len(above))


def above_chance(
    correct: Bool[np.ndarray, " items *points"] | Float[np.ndarray, " items *points"],
    chance: float | Float[np.ndarray, " items"],
) -> Float[np.ndarray, " items *points"]:
    """Normalised score per item: its mean is 0 at chance and 1 when every item is right."""
    level = np.broadcast_to(np.asarray(chance, dtype=np.float64), len(correct))
    level = level.reshape(-1, *[1] * (correct.ndim - 1))
    return (correct - level) / (1 - level)


def curve_table(curves: Mapping[str, Band], depth: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """Curves as a tidy table, one row per point; `depth` is each point's place in the model, 0 to 1."""
    columns = ["curve", "depth", "value", "low", "high"]
    rows = [
        (name, *point)
        for name, band in curves.items()
        for point in zip(depth, band.value, band.low, band.high, strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """A proportion with its Wilson score interval (1927), as scipy computes it.

    Raises ValueError unless n > 0 and 0 <= successes <= n.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0; got {successes} of {n}")
    low, high = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(low), float(high), n)


def mean_score(scores: Float[np.ndarray, " items"], seed: int = 0) -> Interval:
    """The mean of scores between 0 and 1: Wilson's interval where all are 0 or 1, else the bootstrap's."""
    if np.isin(scores, (0, 1)).all():
        return wilson(int(scores.sum()), len(scores))
    return bootstrap_mean(scores, seed)


def permutation_null(
    statistic: Callable[[Int[np.ndarray, " items"]], Float[np.ndarray, "*stat"]],
    n: int,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Null:
    """Compare `statistic(0..n-1)` with its values when the items of one side are permuted.

    p is one-sided (large is extreme) and counts the observed value, so it is never 0.
    """
    observed = np.asarray(statistic(np.arange(n)))
    stream = rng(seed, "permutation")
    drawn = np.stack([statistic(stream.permutation(n)) for _ in range(permutations)])
    p = (1 + (drawn >= observed).sum(axis=0)) / (1 + permutations)
    return Null(observed, drawn.mean(axis=0), np.quantile(drawn, 0.95, axis=0), np.asarray(p), permutations)


def null_band(drawn: Float[np.ndarray, "permutations points"]) -> Band:
    """A curve's null band: mean and middle 95 % of its permuted versions; N counts them."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Band(drawn.mean(axis=0), low, high, len(drawn))
