import numpy as np
import pytest
import skdim
import torch
from clouds import HARD, cloud, hard, is_clear, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize_scalar
from scipy.special import betaln
from torch import Tensor

from vlalign_utils.analysis.intrinsic_dimension import (
    doubling_distances,
    gride,
    layer_distances,
    two_nn,
)
from vlalign_utils.analysis.neighbours import standardise


def normal(n: int = 300, d: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)))


def test_distances_are_the_sorted_loop() -> None:
    x = cloud(0)[0]
    found = doubling_distances(x, 16)
    for i in range(40):
        ordered = sorted(float((x[i] - x[j]).norm()) for j in range(40) if j != i)
        assert found[i].tolist() == pytest.approx([ordered[order - 1] for order in (1, 2, 4, 8, 16)])


@pytest.mark.parametrize(("n", "d"), [(300, 5), (101, 2), (200, 40)])
def test_two_nn_is_scikit_dimensions(n: int, d: int) -> None:
    x = normal(n, d)
    expected = skdim.id.TwoNN(discard_fraction=0.1).fit(x.numpy()).dimension_
    assert two_nn(doubling_distances(x, 2)) == pytest.approx(expected, rel=1e-9)


# At a width of 1e-7 scikit-dimension's own distances, |a|^2 + |b|^2 - 2ab in float64, are rounded.
@pytest.mark.parametrize("name", [name for name in HARD if name != "1e-7"])
def test_two_nn_is_scikit_dimensions_where_rounding_loses_neighbours(name: str) -> None:
    x = hard(name)
    expected = skdim.id.TwoNN(discard_fraction=0.1).fit(x.double().numpy()).dimension_
    assert two_nn(doubling_distances(x, 2)) == pytest.approx(expected, rel=1e-6)


# DADApy 0.3.4, numpy 1.26.4, x = np.random.default_rng(0).standard_normal((300, 5)):
# Data(coordinates=x, maxk=299).compute_id_2NN() and .return_id_scaling_gride(range_max=64, eps=1e-12)
DADAPY_TWO_NN = 4.602505519773661
DADAPY_GRIDE = [
    4.590306344839224,
    5.189933247094416,
    4.986560411222676,
    4.818164950409409,
    4.4979699816558085,
    4.153696244597917,
]
DADAPY_ERROR = [
    0.2650214603855773,
    0.21594690056456775,
    0.1471146622670536,
    0.10045571475972226,
    0.06627131240604324,
    0.043270367377165914,
]


def test_two_nn_and_gride_are_dadapys() -> None:
    distances = doubling_distances(normal(), 64)
    assert two_nn(distances) == pytest.approx(DADAPY_TWO_NN, rel=1e-6)
    found = gride(distances)
    assert found.value.tolist() == pytest.approx(DADAPY_GRIDE, rel=1e-6)
    error = (found.high - found.low) / 2 / 1.959963984540054
    assert error.tolist() == pytest.approx(DADAPY_ERROR, rel=1e-6)
    assert found.n == 300


def test_gride_maximises_the_density_of_denti() -> None:
    distances = doubling_distances(normal(), 8)
    for scale, value in enumerate(gride(distances).value):
        n1, n2 = 2**scale, 2 ** (scale + 1)
        mu = distances[:, scale + 1] / distances[:, scale]

        def loss(d: float, mu: np.ndarray = mu, n1: int = n1, n2: int = n2) -> float:
            density = np.log(d) + (n2 - n1 - 1) * np.log(mu**d - 1) - ((n2 - 1) * d + 1) * np.log(mu)
            return np.log(d) - (density - betaln(n2 - n1, n1)).sum()  # N - 1 times log d, as documented

        best = minimize_scalar(loss, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9}).x
        assert value == pytest.approx(best, rel=1e-5)


@pytest.mark.slow
def test_interval_covers_the_dimension_of_independent_ratios() -> None:
    hits = []
    for seed in range(300):  # mu^-d of the neighbours 2 n1 and n1 is Beta(n1, n1)
        rng = np.random.default_rng(seed)
        mu = np.stack([rng.beta(2**s, 2**s, 100) ** (-1 / 7.5) for s in range(4)], axis=1)
        found = gride(np.cumprod(np.hstack([np.ones((100, 1)), mu]), axis=1))
        hits.append((found.low <= 7.5) & (found.high >= 7.5))
    assert np.mean(hits, axis=0).tolist() == pytest.approx([0.95] * 4, abs=0.04)


@pytest.mark.slow
def test_spread_over_new_items_is_that_of_the_docstring() -> None:
    found = []
    for seed in range(80):  # a flat torus has no edge
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, (400, 2))
        x = torch.from_numpy(np.concatenate([np.cos(angle), np.sin(angle)], axis=1))
        found.append(gride(doubling_distances(x, 16)))
    value = np.stack([band.value for band in found])
    error = np.mean([band.high - band.low for band in found], axis=0) / 2 / 1.96
    assert value.mean(axis=0).tolist() == pytest.approx([2] * 4, abs=0.06)
    assert ((value.std(axis=0) > 1.1 * error) & (value.std(axis=0) < 1.8 * error)).all()


def test_layers_are_standardised_and_named_when_at_fault() -> None:
    x = cloud(0, layers=2) * torch.tensor([1.0, 1e3, 1.0, 1.0, 1.0])
    found = layer_distances(x, 8)
    assert found.shape == (2, 40, 4)
    assert np.array_equal(found[1], doubling_distances(standardise(x[1]), 8))
    x[1, 3] = x[1, 10]
    with pytest.raises(ValueError, match="layer 1: only 39 of 40 items differ"):
        layer_distances(x, 8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_dimension_ignores_rotation_scale_shift_and_order(seed: int, scale: float) -> None:
    x = cloud(seed)[0]
    order = torch.as_tensor(np.random.default_rng(seed).permutation(40))
    here = doubling_distances(x, 16)
    there = doubling_distances(scale * (x[order] @ rotation(seed + 2)) + 3.0, 16)
    assert two_nn(there) == pytest.approx(two_nn(here), rel=1e-6)
    assert gride(there).value.tolist() == pytest.approx(gride(here).value.tolist(), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (10, 2), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([2, 4, 8, 16]),
)
def test_any_input_gives_a_dimension_or_a_clear_error(points: np.ndarray, largest: int) -> None:
    try:
        distances = doubling_distances(torch.from_numpy(points), largest)
        found = gride(distances)
        values = [two_nn(distances), *found.value, *found.low, *found.high]
    except ValueError as error:
        if not is_clear(error):
            raise
    else:
        assert np.isfinite(values).all()
        assert found.value.min() > 0


def test_equal_distances_are_refused() -> None:
    distances = doubling_distances(torch.eye(10, dtype=torch.float64), 4)
    for measure in (two_nn, gride):
        with pytest.raises(ValueError, match="equally far"):
            measure(np.round(distances, 6))


@pytest.mark.parametrize("largest", [0, 1, 3, 12])
def test_scales_are_powers_of_two(largest: int) -> None:
    with pytest.raises(ValueError, match=f"largest = {largest}: expected a power of 2"):
        doubling_distances(cloud(0)[0], largest)
