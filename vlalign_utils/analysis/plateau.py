"""The plateau of a curve over layers: the run around its highest point that keeps most of its height."""

import numpy as np
from jaxtyping import Float, Int

SHARE = 0.8  # of the highest value above chance that a layer of the plateau keeps


def span(
    means: Float[np.ndarray, "draws layers"], chance: float, share: float = SHARE
) -> tuple[Int[np.ndarray, " draws"], Int[np.ndarray, " draws"]]:
    """First layer and number of layers of each curve's plateau: all next to its highest layer that keep
    `share` of what that one has above chance.

    A curve that is nowhere above chance has a plateau of its highest layer alone. Raises ValueError for a
    share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share:g}, expected more than 0 and at most 1")
    top = means.argmax(axis=1)
    above = means - chance
    highest = above.max(axis=1, keepdims=True)
    kept = (above >= share * highest) & (highest > 0)
    layer = np.arange(means.shape[1])
    kept |= layer == top[:, None]
    # The nearest layers on either side that are not kept bound the run.
    before = np.where(~kept & (layer < top[:, None]), layer, -1).max(axis=1)
    after = np.where(~kept & (layer > top[:, None]), layer, means.shape[1]).min(axis=1)
    return before + 1, after - before - 1


def height(values: Float[np.ndarray, "items layers"], chance: float) -> float:
    """Mean over items and over the layers of the plateau."""
    (first,), (width,) = span(values.mean(axis=0)[None], chance)
    return float(values[:, first : first + width].mean())


def width(
    means: Float[np.ndarray, "draws layers"], chance: float, share: float = SHARE
) -> Float[np.ndarray, " draws"]:
    """Width of each curve's plateau as a share of the depth, from where the curve, drawn with straight lines
    between its layers, rises to the plateau's level to where it falls below; 0 where nothing is above chance.

    >>> width(np.array([[0.0, 1.0, 1.0, 0.6, 0.2]]), 0.0).round(3)
    array([0.425])
    """
    first, layers = span(means, chance, share)
    last, end = first + layers - 1, means.shape[1] - 1
    rows = np.arange(len(means))
    level = chance + share * (means.max(axis=1) - chance)

    def beyond(inside: Int[np.ndarray, " draws"], step: int) -> Float[np.ndarray, " draws"]:
        """How far the curve stays above its level behind the plateau's end, up to the next layer."""
        outside = np.clip(inside + step, 0, end)
        fall = means[rows, inside] - means[rows, outside]
        above = means[rows, inside] - level
        part: Float[np.ndarray, " draws"] = np.divide(above, fall, out=np.zeros(len(means)), where=fall > 0)
        return part

    wide = (last - first + beyond(first, -1) + beyond(last, 1)) / end
    return np.where(means.max(axis=1) > chance, wide, 0.0)


def wider(means: Float[np.ndarray, "draws twice_layers"], chance: float) -> Float[np.ndarray, " draws"]:
    """Width of the plateau of the first half of each row minus that of the second, as a share of the depth.

    Two curves stand side by side in a row, so that both are resampled with the same items.
    """
    one, other = np.split(means, 2, axis=1)
    return width(one, chance) - width(other, chance)
