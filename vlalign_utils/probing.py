"""Linear probes: at which layer can a concept be read off, and is it written alike in both modalities?"""

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vlalign_utils.geometry import standardise
from vlalign_utils.stats import rng

TRAIN_SHARE = 0.7
INVERSE_PENALTY = 0.1  # scikit-learn's C; fixed in advance, so that no test item has a say in it
MAX_ITER = 2000


def split(n: int, seed: int = 0) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"]]:
    """Random 70/30 split of item numbers. Raises ValueError when either side would be empty."""
    cut = round(TRAIN_SHARE * n)
    if not 0 < cut < n:
        raise ValueError(f"{n} items cannot be split into training and test items")
    order = rng(seed, "probe split").permutation(n)
    return np.sort(order[:cut]), np.sort(order[cut:])


def control_labels(types: Int[np.ndarray, "items"], classes: int, seed: int = 0) -> Int[np.ndarray, "items"]:
    """Random labels that are the same for all items of a type, so that only memory can learn them.

    A concept's accuracy minus the accuracy on these is the probe's selectivity.
    Source: Hewitt and Liang 2019, arXiv 1909.03368.
    """
    found, index = np.unique(types, return_inverse=True)
    return rng(seed, "control task").integers(0, classes, len(found))[index]


def linear_probe(
    train: Float[Tensor, "layers train d"],
    train_labels: Int[np.ndarray, "train"],
    test: Float[Tensor, "layers test d"],
    test_labels: Int[np.ndarray, "test"],
    reference: Float[Tensor, "layers others d"] | None = None,
) -> Bool[np.ndarray, "layers test"]:
    """Fit a logistic regression at each layer and say which test items it gets right.

    Features are standardised with the training items. When the test items come from the other modality,
    pass unlabelled training items of that modality as `reference`: they standardise the test items, which
    takes the gap between the modalities away without looking at a test item.
    Raises ValueError when there is only one class, or a state is not finite.
    """
    if len(np.unique(train_labels)) < 2:
        raise ValueError("a probe needs at least two classes among the training items")
    fit_on = standardise(train).numpy()
    tried_on = standardise(test, train if reference is None else reference).numpy()
    right = []
    for known, asked in zip(fit_on, tried_on, strict=True):
        probe = LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITER, tol=1e-3)
        right.append(probe.fit(known, train_labels).predict(asked) == test_labels)
    return np.stack(right)
