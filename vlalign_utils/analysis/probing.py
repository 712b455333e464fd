"""Probes: at which layer can a concept be read off, and is it written alike in both modalities?"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor
from torch.nn import functional as F

from vlalign_utils.analysis.neighbours import standardise
from vlalign_utils.evidence.intervals import rng

TRAIN_SHARE = 0.7
INVERSE_PENALTY = 0.1  # scikit-learn's C; fixed in advance, so that no test item has a say in it
MAX_ITER = 2000
NEIGHBOURS = 10


def split(
    n: int, seed: int = 0, groups: Int[np.ndarray, " items"] | None = None
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Random split of item numbers, 70 % for training and 30 % to test, by GroupShuffleSplit of scikit-learn.

    Items of one of the `groups` (such as those with the same caption) stay on one side: the shares are then
    those of the groups. Raises ValueError when either side would be empty, or groups are not n.
    """
    if groups is not None and len(groups) != n:
        raise ValueError(f"{n} items but {len(groups)} groups: give each item its group")
    apart = np.arange(n) if groups is None else groups
    if len(np.unique(apart)) < 2:
        raise ValueError(f"{n} items cannot be split into training and test items")
    drawn = GroupShuffleSplit(n_splits=1, train_size=TRAIN_SHARE, random_state=seed)
    train, test = next(drawn.split(apart, groups=apart))
    return np.sort(train), np.sort(test)


def control_labels(
    types: Int[np.ndarray, " items"], classes: int, seed: int = 0
) -> Int[np.ndarray, " items"]:
    """Random labels that are the same for all items of a type, so that only memory can learn them.

    A concept's accuracy minus the accuracy on these is the probe's selectivity.
    Source: Hewitt and Liang 2019, arXiv 1909.03368.
    """
    found, index = np.unique(types, return_inverse=True)
    return rng(seed, "control task").integers(0, classes, len(found))[index]


class LinearProbe:
    """A logistic regression at each layer, fitted once and tested as often as one likes.

    Features are standardised with the training items. When the test items come from the other modality,
    pass unlabelled training items of that modality as `reference`: they standardise the test items, which
    takes the gap between the modalities away without looking at a test item.
    Raises ValueError when there is only one class, or a state is not finite.
    """

    def __init__(
        self, train: Float[Tensor, "layers train d"], train_labels: Int[np.ndarray, " train"]
    ) -> None:
        """Fit to states and their labels."""
        _check_classes(train_labels)
        _check_finite(train)
        self._train = train
        self._layers = [
            LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITER, tol=1e-3).fit(known, train_labels)
            for known in standardise(train).numpy()
        ]

    def right(
        self,
        test: Float[Tensor, "layers test d"],
        test_labels: Int[np.ndarray, " test"],
        reference: Float[Tensor, "layers others d"] | None = None,
    ) -> Bool[np.ndarray, "layers test"]:
        """Which test items each layer's probe gets right."""
        _check_finite(test, reference)
        tried_on = standardise(test, self._train if reference is None else reference).numpy()
        pairs = zip(self._layers, tried_on, strict=True)
        return np.stack([probe.predict(asked) == test_labels for probe, asked in pairs])


def linear_probe(
    train: Float[Tensor, "layers train d"],
    train_labels: Int[np.ndarray, " train"],
    test: Float[Tensor, "layers test d"],
    test_labels: Int[np.ndarray, " test"],
    reference: Float[Tensor, "layers others d"] | None = None,
) -> Bool[np.ndarray, "layers test"]:
    """Fit a `LinearProbe` and say which test items it gets right at each layer."""
    return LinearProbe(train, train_labels).right(test, test_labels, reference)


def knn_probe(
    train: Float[Tensor, "layers train d"],
    train_labels: Int[np.ndarray, " train"],
    test: Float[Tensor, "layers test d"],
    test_labels: Int[np.ndarray, " test"],
    reference: Float[Tensor, "layers others d"] | None = None,
    k: int = NEIGHBOURS,
) -> Bool[np.ndarray, "layers test"]:
    """Let the k nearest training items vote, at each layer, and say which test items that gets right.

    Nearest is largest cosine of features standardised as in `LinearProbe`, of equally near items the one
    given first; of classes with equally many votes the one with the nearest item wins. Nothing is fitted:
    this reads what neighbourhoods show. Raises ValueError when there is only one class, a state is not
    finite, or unless 1 <= k <= training items.
    """
    _check_classes(train_labels)
    if not 1 <= k <= len(train_labels):
        raise ValueError(f"k is {k}, expected 1..{len(train_labels)}, the number of training items")
    _check_finite(train, test, reference)
    known = F.normalize(standardise(train, dtype=torch.float64), dim=-1)
    fitted_on = train if reference is None else reference
    asked = F.normalize(standardise(test, fitted_on, torch.float64), dim=-1)
    classes, index = np.unique(train_labels, return_inverse=True)
    voters = torch.from_numpy(index)
    right = []
    for layer_known, layer_asked in zip(known, asked, strict=True):
        near = (layer_asked @ layer_known.T).argsort(dim=-1, descending=True, stable=True)[:, :k]
        right.append(classes[_elected(voters[near], len(classes)).numpy()] == test_labels)
    return np.stack(right)


def _elected(votes: Int[Tensor, "items k"], classes: int) -> Int[Tensor, " items"]:
    """The class with most votes, the nearest first; of equals the one that was voted for first."""
    by_class = F.one_hot(votes, classes)
    count, first = by_class.sum(dim=1), by_class.argmax(dim=1)
    return (count * votes.shape[1] - first).argmax(dim=-1)  # a rank is below k: it decides ties alone


def _check_classes(labels: Int[np.ndarray, " items"]) -> None:
    if len(np.unique(labels)) < 2:
        raise ValueError("a probe needs at least two classes among the training items")


def _check_finite(*states: Float[Tensor, "layers _ d"] | None) -> None:
    for given in states:
        if given is None:
            continue
        bad = (~given.isfinite().flatten(start_dim=1).all(dim=-1)).nonzero()
        if len(bad):
            raise ValueError(f"layer {int(bad[0])}: a state is NaN or infinite, so nothing can be read off")
