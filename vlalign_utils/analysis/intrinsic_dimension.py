"""Intrinsic dimension from the distances of each item to its 1st, 2nd, 4th, ... neighbour, found once.

Locally uniform points of dimension d have known ratios of neighbour distances: TwoNN fits the second over the
first, Gride every distance over the one of half its order, so that d can be seen at larger and larger scales.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import exprel
from scipy.stats import norm
from torch import Tensor

from vlalign_utils.analysis.neighbours import nearest, standardise
from vlalign_utils.evidence.intervals import Band

KEPT = 0.9  # share of the ratios that TwoNN fits: the largest 10 % are left out


def doubling_distances(x: Float[Tensor, "items d"], largest: int = 64) -> Float[np.ndarray, "items orders"]:
    """Euclidean distances to the neighbours of order 1, 2, 4, ..., `largest`, features as they are.

    Raises ValueError unless `largest` is a power of 2 from 2 up, and as `nearest` does.
    """
    if largest < 2 or largest & (largest - 1):
        raise ValueError(
            f"largest = {largest}: expected a power of 2, the order of the farthest neighbour used"
        )
    orders = 2 ** torch.arange(largest.bit_length())
    near, x = nearest(x, largest)[:, orders - 1], x.double()
    # The search may round in the last digits; distances that enter ratios are taken from differences.
    found = [torch.linalg.vector_norm(x - x[column], dim=-1) for column in near.T]
    return torch.stack(found, dim=-1).sort(dim=-1).values.cpu().numpy()


def layer_distances(
    states: Float[Tensor, "layers items d"], largest: int = 64
) -> Float[np.ndarray, "layers items orders"]:
    """The same at each layer, on standardised features. Raises ValueError naming the layer at fault."""
    found = []
    for layer, x in enumerate(states):
        try:
            found.append(doubling_distances(standardise(x, dtype=torch.float64), largest))
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from error
    return np.stack(found)


def two_nn(distances: Float[np.ndarray, "items orders"]) -> float:
    """Intrinsic dimension from the first two columns, by a line through the origin.

    The largest 10 % of the ratios are left out. Gride at its smallest scale fits the same ratios by maximum
    likelihood and has an interval. Raises ValueError when the two distances are equal at every item.
    Source: Facco et al. 2017, doi 10.1038/s41598-017-11873-y.
    """
    n = len(distances)
    log_mu = np.sort(_log_ratio(distances[:, :2])[:, 0])[: int(n * KEPT)]
    height = -np.log1p(-np.arange(1, len(log_mu) + 1) / n)
    return float(log_mu @ height / _positive(log_mu @ log_mu))


def gride(distances: Float[np.ndarray, "items orders"], level: float = 0.95) -> Band:
    """Intrinsic dimension at each scale, from the ratios of each column over the one before.

    Point s uses the neighbours of order 2^s and 2^(s+1). Maximum likelihood; the interval is normal, from the
    observed information, and takes the ratios of different items as independent. Items near each other share
    distances: over new samples of a flat torus, d spreads 1.1 to 1.6 times as much as the interval says.
    Raises ValueError when two distances are equal at every item.
    Source: Denti et al. 2022, doi 10.1038/s41598-022-20991-1, for n2 = 2 n1.
    """
    z = float(norm.ppf((1 + level) / 2))
    found = [_most_likely(column, 2**scale) for scale, column in enumerate(_log_ratio(distances).T)]
    value, error = np.array(found).T
    return Band(value, value - z * error, value + z * error, len(distances))


def _most_likely(log_mu: Float[np.ndarray, " items"], n1: int) -> tuple[float, float]:
    """Dimension d and its standard error from log ratios of the neighbours 2 n1 and n1.

    With u = d log mu, the log-likelihood is, but for a constant,
    N log d + (n1 - 1) sum log(e^u - 1) - (2 n1 - 1) sum u. It is concave. As in DADApy, N - 1 stands for N
    where it is maximised, which makes d unbiased at n1 = 1, where it is (N - 1) / sum log mu.
    """
    n, total = len(log_mu), _positive(log_mu.sum())

    def slope(d: float) -> float:  # of the log-likelihood, times d; u / (1 - e^-u) is 1 / exprel(-u)
        u = d * log_mu
        return n - 1 + (n1 - 1) * (1 / exprel(-u)).sum() - (2 * n1 - 1) * u.sum()

    # max(1, u) <= u / (1 - e^-u) <= 1 + u puts the only root between these; the margin is for rounding.
    low, high = ((n - 1 / n1) / total * share for share in (n1 / (2 * n1 - 1), 1.0))
    d = brentq(slope, low * (1 - 1e-9), high * (1 + 1e-9), xtol=1e-12 * high, rtol=1e-12)
    u = d * log_mu
    information = n + (n1 - 1) * (np.exp(-u) / exprel(-u) ** 2).sum()  # observed, times d^2
    return d, d / np.sqrt(information)


def _log_ratio(distances: Float[np.ndarray, "items orders"]) -> Float[np.ndarray, "items scales"]:
    return np.diff(np.log(distances), axis=1)


def _positive(total: float) -> float:
    if not 0 < total < np.inf:
        raise ValueError(
            "neighbours of different order are equally far from every item: no dimension is defined"
        )
    return total
