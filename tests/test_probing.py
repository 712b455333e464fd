import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vlalign_utils import probing

CLASSES = 4


def world(n: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> tuple[Tensor, np.ndarray]:
    """Three layers: the concept is absent, faint, clear. One feature is enormous and means nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    x = rng.normal(size=(3, n, 12))
    for layer, strength in enumerate((0.0, 1.0, 6.0)):
        x[layer, np.arange(n), labels] += strength
    x[:, :, -1] *= 1000
    return torch.tensor(shift * np.arange(12) + scale * x, dtype=torch.float32), labels


def test_probe_is_scikit_learn_s_pipeline() -> None:
    (train, labels), (test, truth) = world(300, 0), world(200, 1)
    right = probing.linear_probe(train, labels, test, truth)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=probing.INVERSE_PENALTY, max_iter=probing.MAX_ITER, tol=1e-3)
    )
    for layer in range(3):
        predicted = model.fit(train[layer].numpy(), labels).predict(test[layer].numpy())
        assert (right[layer] == (predicted == truth)).all()


def test_accuracy_follows_the_strength_of_the_concept() -> None:
    (train, labels), (test, truth) = world(300, 0), world(400, 1)
    absent, faint, clear = probing.linear_probe(train, labels, test, truth).mean(axis=1)
    assert absent < 0.35 < faint < 0.9 < clear


def test_no_test_item_has_a_say_in_another() -> None:
    (train, labels), (test, truth) = world(300, 0), world(10, 1)
    alone = np.concatenate(
        [probing.linear_probe(train, labels, test[:, [i]], truth[[i]]) for i in range(10)], axis=1
    )
    assert (alone == probing.linear_probe(train, labels, test, truth)).all()


def test_transfer_across_a_gap_needs_the_reference() -> None:
    train, labels = world(300, 0)
    far, far_truth = world(400, 1, shift=50.0, scale=3.0)
    unlabelled, _ = world(300, 2, shift=50.0, scale=3.0)
    lost = probing.linear_probe(train, labels, far, far_truth)[2].mean()
    found = probing.linear_probe(train, labels, far, far_truth, reference=unlabelled)[2].mean()
    assert lost < 0.4
    assert found > 0.9


def test_control_labels_are_one_random_class_per_type() -> None:
    types = np.repeat(np.arange(400), 5)
    labels = probing.control_labels(types, classes=4, seed=0)
    assert (labels.reshape(400, 5) == labels[::5, None]).all()
    assert np.bincount(labels, minlength=4).min() > 0.15 * len(types)
    assert (labels != probing.control_labels(types, classes=4, seed=1)).any()


def test_a_concept_is_selective_and_a_control_task_is_not() -> None:
    (train, labels), (test, truth) = world(300, 0), world(400, 1)
    types = np.arange(700) % 350
    control = probing.control_labels(types, CLASSES)
    concept_right = probing.linear_probe(train, labels, test, truth)[2].mean()
    control_right = probing.linear_probe(train, control[:300], test, control[300:])[2].mean()
    assert concept_right - control_right > 0.5


def test_split_is_disjoint_complete_and_70_30() -> None:
    train, test = probing.split(100, seed=3)
    assert sorted([*train, *test]) == list(range(100))
    assert len(train) == 70


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_items_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        probing.split(n)


def test_one_class_is_refused() -> None:
    x, _ = world(10, 0)
    same = np.zeros(10, dtype=int)
    with pytest.raises(ValueError, match="two classes"):
        probing.linear_probe(x, same, x, same)
