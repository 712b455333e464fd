"""Do two measures point at the same layers? Rank correlation of their profiles over depth."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from vlalign_utils.evidence.findings import sentence, shown
from vlalign_utils.evidence.intervals import Interval, resampled_means


@dataclass(frozen=True, eq=False)
class Profile:
    """One measure over depth, an item a row; `depth` is ascending, 0 to 1 of the model."""

    values: Float[np.ndarray, "items points"]
    depth: Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of two profiles with its interval over items.

    `shifted` is what 95 % of the same two do not reach in size when one is moved along depth by a quarter of
    it or more, around the ends: curves as smooth as these agree so well by luck.
    """

    one: str
    other: str
    rho: Interval
    shifted: float


def agreement(profiles: Mapping[str, Profile], layers: int, seed: int = 0) -> list[Agreement]:
    """Compare every two profiles at `layers` depths, 0, 1 / layers and so on; means are interpolated.

    Items are resampled, those of two measures together where they are equally many. Raises ValueError for
    fewer than four layers, and for a profile that is the same at all depths.

    >>> rng = np.random.default_rng(0)
    >>> rise = np.linspace(0, 1, 9) + rng.normal(0, 0.1, (50, 9))
    >>> depth = np.linspace(0, 1, 9)
    >>> found = agreement({"rise": Profile(rise, depth), "fall": Profile(-rise, depth)}, 8)[0]
    >>> round(found.rho.value, 3)
    -1.0
    """
    if layers < 4:
        raise ValueError(f"profiles over {layers} layers have no order to compare: it takes four at least")
    at = np.arange(layers) / layers
    means, drawn = {}, {}
    for name, own in profiles.items():
        means[name] = _ranks(own.values.mean(axis=0)[None], own.depth, at)
        if np.ptp(means[name]) == 0:
            raise ValueError(f"the profile {name!r} is the same at all depths: it has no order")
        drawn[name] = _ranks(resampled_means(own.values, seed), own.depth, at)
    found = []
    for one, other in combinations(profiles, 2):
        (value,) = _correlations(means[one], means[other])
        low, high = np.nanquantile(_correlations(drawn[one], drawn[other]), [0.025, 0.975])
        n = min(len(profiles[one].values), len(profiles[other].values))
        shifts = range(-(-layers // 4), layers - layers // 4)
        moved = np.concatenate([np.roll(means[other], shift, axis=1) for shift in shifts])
        luck = np.abs(_correlations(np.repeat(means[one], len(shifts), axis=0), moved))
        found.append(
            Agreement(
                one, other, Interval(float(value), float(low), float(high), n), float(np.quantile(luck, 0.95))
            )
        )
    return found


def as_table(found: list[Agreement]) -> pd.DataFrame:
    """Rows to show or to save: the two measures, the correlation with its interval, and luck."""
    rows = [(a.one, a.other, *a.rho, a.shifted) for a in found]
    return pd.DataFrame(rows, columns=["one", "other", "rho", "low", "high", "n", "shifted"])


def told(found: list[Agreement]) -> str:
    """One sentence on all comparisons: how many agree or are opposed beyond luck, and the most unlike two."""
    alike = sum(a.rho.low > a.shifted for a in found)
    opposed = sum(a.rho.high < -a.shifted for a in found)
    apart = min(found, key=lambda a: a.rho.value)
    return sentence(
        f"Of {len(found)} pairs of profiles over depth {alike} agree and {opposed} are opposed, beyond luck; "
        f"most unlike are “{apart.one}” and “{apart.other}”, with a rank correlation of {shown(apart.rho)}"
    )


def _ranks(
    curves: Float[np.ndarray, "draws points"], depth: Float[np.ndarray, " points"], at: np.ndarray
) -> Float[np.ndarray, "draws layers"]:
    ranks: Float[np.ndarray, "draws layers"] = rankdata(list(_interpolated(curves, depth, at)), axis=1)
    return ranks


def _interpolated(curves: np.ndarray, depth: np.ndarray, at: np.ndarray) -> Iterator[np.ndarray]:
    return (np.interp(at, depth, curve) for curve in curves)


def _correlations(
    one: Float[np.ndarray, "draws layers"], other: Float[np.ndarray, "draws layers"]
) -> Float[np.ndarray, " draws"]:
    """Pearson's correlation of ranks, row by row: Spearman's."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (one, other))
    with np.errstate(invalid="ignore"):  # a draw in which all are equal has none
        found: Float[np.ndarray, " draws"] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found
