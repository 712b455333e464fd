from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vlalign_utils.analysis import probing

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
    with pytest.raises(ValueError, match="two classes"):
        probing.knn_probe(x, same, x, same)


def cosine_knn(k: int, train: Tensor, labels: np.ndarray, test: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's votes and neighbours for one layer; its own way to break ties differs from ours."""
    scaler = StandardScaler().fit(train.double().numpy())
    model = KNeighborsClassifier(k, metric="cosine").fit(scaler.transform(train.double().numpy()), labels)
    asked = scaler.transform(test.double().numpy())
    return model.predict_proba(asked), model.kneighbors(asked)[1]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_knn_is_scikit_learn_s_and_ties_go_to_the_nearest(k: int) -> None:
    (train, labels), (test, truth) = world(300, 0), world(200, 1)
    right = probing.knn_probe(train, labels, test, truth, k=k)
    ties = 0
    for layer in range(3):
        votes, neighbours = cosine_knn(k, train[layer], labels, test[layer])
        for item, (vote, near) in enumerate(zip(votes, neighbours, strict=True)):
            best = set(np.flatnonzero(vote == vote.max()))
            ties += len(best) > 1
            elected = next(labels[i] for i in near if labels[i] in best)
            assert right[layer, item] == (elected == truth[item])
    assert (ties > 0) == (k > 1)


def test_knn_takes_any_class_numbers_and_a_reference() -> None:
    train, labels = world(300, 0)
    far, truth = world(300, 1, shift=50.0, scale=3.0)
    unlabelled, _ = world(300, 2, shift=50.0, scale=3.0)
    names = np.array([-7, 3, 900, 41])
    lost = probing.knn_probe(train, names[labels], far, names[truth])[2].mean()
    found = probing.knn_probe(train, names[labels], far, names[truth], reference=unlabelled)[2].mean()
    assert lost < 0.4
    assert found > 0.8
    assert (
        probing.knn_probe(train, names[labels], far, names[truth])
        == probing.knn_probe(train, labels, far, truth)
    ).all()


@pytest.mark.parametrize("k", [0, 301])
def test_knn_needs_as_many_training_items(k: int) -> None:
    train, labels = world(300, 0)
    with pytest.raises(ValueError, match="the number of training items"):
        probing.knn_probe(train, labels, train, labels, k=k)


@pytest.mark.parametrize("probe", [probing.linear_probe, probing.knn_probe])
def test_a_state_that_is_not_finite_is_refused_by_its_layer(probe) -> None:
    train, labels = world(50, 0)
    broken = train.clone()
    broken[1, 4, 2] = torch.nan
    for states in ((train, labels, broken, labels), (broken, labels, train, labels)):
        with pytest.raises(ValueError, match="layer 1: a state is NaN or infinite"):
            probe(*states)
    with pytest.raises(ValueError, match="layer 1: a state is NaN or infinite"):
        probe(train, labels, train, labels, reference=broken)


@pytest.mark.slow_except("knn_probe")
@pytest.mark.parametrize("probe", [probing.linear_probe, probing.knn_probe])
@given(
    seed=st.integers(0, 10_000),
    changed=st.sets(st.integers(0, 19), min_size=1, max_size=19),
    size=st.floats(0.1, 1e4),
)
@settings(max_examples=15, deadline=None)
def test_other_test_items_and_their_labels_change_nothing(
    probe: Any, seed: int, changed: set[int], size: float
) -> None:
    """Neither a fit, a standardisation nor a vote may look at the items that it is tested on."""
    (train, labels), (test, truth) = world(60, 0), world(20, 1)
    reference, _ = world(40, 2)
    rows, noise = sorted(changed), np.random.default_rng(seed)
    other, other_truth = test.clone(), truth.copy()
    other[:, rows] = torch.tensor(size * noise.normal(size=(3, len(rows), 12)), dtype=torch.float32)
    other_truth[rows] = noise.integers(0, CLASSES, len(rows))
    kept = np.setdiff1d(np.arange(20), rows)
    for known in (None, reference):
        before = probe(train, labels, test, truth, known)
        after = probe(train, labels, other, other_truth, known)
        assert (before[:, kept] == after[:, kept]).all()


def test_groups_are_never_torn_apart() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 300)
    train, test = probing.split(300, 3, groups)
    assert sorted([*train, *test]) == list(range(300))
    assert not set(groups[train]) & set(groups[test])
    assert abs(len(train) - 210) <= np.bincount(groups).max() / 2
    assert not np.array_equal(train, probing.split(300, 4, groups)[0])
    alone = probing.split(300, 3, np.arange(300))
    assert all(np.array_equal(a, b) for a, b in zip(alone, probing.split(300, 3), strict=True))


def test_groups_that_leave_a_side_empty_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        probing.split(10, 0, np.zeros(10, dtype=int))
    with pytest.raises(ValueError, match="10 items but 9 groups"):
        probing.split(10, 0, np.zeros(9, dtype=int))
