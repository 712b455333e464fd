"""Nulls and intervals for statistics of two representations: pairs shuffled, items halved."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor

from vlalign_utils.evidence.intervals import PERMUTATIONS, Band, rng

HALVES = 100


def shuffled(
    paired: Callable[[Int[Tensor, "pairings items"]], Float[Tensor, " pairings *grid"]],
    n: int,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Float[Tensor, " pairings *grid"]:
    """One grid for each of `permutations` random pairings of n items.

    `paired` is any `*_paired` function of the geometry with its two representations filled in, such as
    `partial(imbalance_paired, x, y)`. It gets all pairings at once, so what depends on one layer alone is
    computed once: with 600 items and 9 x 9 layers, 100 pairings take half a second or less on one core for
    overlap, imbalance, cosine and recall, and some 4 seconds for CKA and for CKNNA. The best cell of one grid
    is the fair comparison for the best cell of the real grid.
    """
    stream = rng(seed, "shuffled pairs")
    return paired(torch.as_tensor(np.stack([stream.permutation(n) for _ in range(permutations)])))


def half_samples(
    statistic: Callable[[Int[np.ndarray, " some"]], Float[np.ndarray, " points"]],
    n: int,
    repeats: int = HALVES,
    seed: int = 0,
    level: float = 0.95,
) -> Band:
    """A curve that is no mean over items, such as CKA, with a normal interval from halves of the items.

    `statistic` takes the numbers of the items to use, each at most once: a bootstrap would draw duplicates,
    which have no neighbours and inflate a Gram matrix. The standard deviation over halves drawn without
    replacement is, to first order, the standard error with all n items (1 / (n/2) - 1/n = 1/n): no rescaling.
    It is approximate where k neighbours are a larger share of a half than of the whole, as in CKNNA.
    Source: Shao and Tu 1995, The Jackknife and Bootstrap, 2.3 and 5.2.
    """
    stream = rng(seed, "half samples")
    halves = np.stack([statistic(np.sort(stream.permutation(n)[: n // 2])) for _ in range(repeats)])
    value = np.asarray(statistic(np.arange(n)), dtype=np.float64)
    margin = float(norm.ppf((1 + level) / 2)) * halves.std(axis=0, ddof=1)
    return Band(value, value - margin, value + margin, n)


def above_strongest(
    values: Float[np.ndarray, "items points"], by_luck: Mapping[str, Float[np.ndarray, "items points"]]
) -> Float[np.ndarray, "items points"]:
    """Values minus the null that is highest on average at each point, item by item.

    Nulls have the shape of the values; one of a single point, [items, 1], stands for all. Which one is
    highest is seen on the same items, so that the excess is too small rather than too large. Raises
    ValueError without a null.

    >>> values = np.array([[0.5, 0.9]])
    >>> above_strongest(values, {"bags": np.array([[0.2]]), "shuffled": np.array([[0.1, 0.4]])}).round(2)
    array([[0.3, 0.5]])
    """
    if not by_luck:
        raise ValueError("there is no null to be above: name one at least")
    every = np.stack([np.broadcast_to(null, values.shape) for null in by_luck.values()])
    highest = every.mean(axis=1).argmax(axis=0)
    found: Float[np.ndarray, "items points"] = (
        values - np.take_along_axis(every, highest[None, None], axis=0)[0]
    )
    return found
