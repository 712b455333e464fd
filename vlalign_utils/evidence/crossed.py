"""Means over items that several seeds of a recipe were all scored on: seeds and items as crossed factors."""

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from vlalign_utils.evidence.intervals import Interval, bootstrap_mean, mean_score


def crossed_mean(
    scores: Float[np.ndarray, "seeds items"], level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Mean over seeds and items, for other seeds and other items; `n` counts the items.

    The variance is that of a two-way layout without repetition, (MS_seeds + MS_items - MS_rest) / (seeds *
    items), with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2:110). One seed has the
    interval of `mean_score`, which says nothing of other seeds. `bounds` are those of a score.

    Raises ValueError when there is no item or a score is not finite.

    >>> crossed_mean(np.array([[1.0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]]))
    Interval(value=0.75, low=0.1..., high=1.0, n=4)
    """
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError("crossed scores must be finite, of at least one seed and one item")
    seeds, items = scores.shape
    if seeds == 1 or np.ptp(scores) == 0:
        return _of_one(scores[0], bounds)
    value = float(scores.mean())
    of_seeds, of_items = scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    free = {"seeds": seeds - 1, "items": items - 1, "rest": (seeds - 1) * (items - 1)}
    squares = {
        "seeds": items * float(((of_seeds - value) ** 2).sum()),
        "items": seeds * float(((of_items - value) ** 2).sum()),
        "rest": float(((scores - of_seeds - of_items + value) ** 2).sum()),
    }
    mean_squares = {name: squares[name] / max(1, free[name]) for name in squares}
    # An estimate below the variance of items alone would say that seeds make a mean surer than one is.
    spread = max(mean_squares["seeds"] + mean_squares["items"] - mean_squares["rest"], mean_squares["items"])
    freedom = spread**2 / sum(mean_squares[name] ** 2 / max(1, free[name]) for name in mean_squares)
    half = float(t.ppf((1 + level) / 2, max(seeds - 1, freedom))) * (spread / scores.size) ** 0.5
    low, high = bounds
    return Interval(value, max(low, value - half), min(high, value + half), items)


def _of_one(scores: Float[np.ndarray, " items"], bounds: tuple[float, float]) -> Interval:
    return mean_score(scores) if bounds == (0.0, 1.0) else bootstrap_mean(scores)
