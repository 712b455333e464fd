import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from vlalign_utils.compression.closed_form import (
    in_basis,
    low_rank,
    quantised,
    ridge,
    shared_basis,
    stream_change,
)


@pytest.fixture
def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6))
    y = x @ draw.normal(size=(6, 5)) + draw.normal(size=(200, 5))
    return torch.tensor(x), torch.tensor(y)


def test_ridge_is_that_of_scikit_learn(data):
    x, y = data
    alpha = 0.3 * float((x.T @ x).diagonal().mean())
    known = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(ridge(x.T @ x, x.T @ y, 0.3).numpy(), known.coef_.T, rtol=1e-9)


def test_low_rank_has_the_fitted_values_of_a_truncated_decomposition(data):
    x, y = data
    a, b = low_rank(x.T @ x, x.T @ y, 2, 0.01)
    assert (a.shape, b.shape) == ((6, 2), (2, 5))
    fitted = (x @ ridge(x.T @ x, x.T @ y, 0.01)).numpy()
    u, s, vh = np.linalg.svd(fitted, full_matrices=False)
    np.testing.assert_allclose((x @ a @ b).numpy(), (u[:, :2] * s[:2]) @ vh[:2], rtol=1e-6, atol=1e-8)


def test_full_rank_is_ridge_itself(data):
    x, y = data
    a, b = low_rank(x.T @ x, x.T @ y, 5, 0.1)
    torch.testing.assert_close(a @ b, ridge(x.T @ x, x.T @ y, 0.1))


def test_a_basis_holds_what_all_modules_have_in_common():
    draw = np.random.default_rng(1)
    common = np.linalg.qr(draw.normal(size=(8, 2)))[0]
    inputs = [scale * draw.normal(size=(50, 2)) @ common.T for scale in (1.0, 30.0)]
    grams = torch.stack([torch.tensor(x.T @ x) for x in inputs])
    basis = shared_basis(grams, 2)
    np.testing.assert_allclose((basis @ basis.T).numpy(), common @ common.T, atol=1e-8)
    one = torch.zeros(2, 4, 4, dtype=torch.float64)
    one[0, 0, 0], one[1, 1, 1], one[1, 2, 2] = 1e6, 2.0, 1.0  # equal traces after scaling
    assert shared_basis(one, 1)[:, 0].abs().tolist() == [1, 0, 0, 0]
    assert shared_basis(one, 2)[:, 1].abs().tolist() == [0, 1, 0, 0]


def test_a_regression_in_a_whole_basis_is_ridge(data):
    x, y = data
    basis = torch.linalg.qr(
        torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    found = basis @ in_basis(basis, x.T @ x, x.T @ y, 0.2)
    torch.testing.assert_close(found, ridge(x.T @ x, x.T @ y, 0.2))


def test_nothing_changes_a_stream_by_nothing_and_zero_streams_are_finite():
    h = torch.randn(3, 4)
    assert stream_change(h, h).abs().max() < 1e-6
    assert stream_change(h, 2 * h).tolist() == pytest.approx([1, 1, 1])
    assert stream_change(torch.zeros(2, 1), torch.tensor([[0.0], [5.0]])).tolist() == [0, 2]


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_by_half_a_step_of_its_group_at_most(bits):
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    found = quantised(weight, bits, 32)
    for first in (0, 32, 64):
        part, error = weight[:, first : first + 32], (found - weight)[:, first : first + 32]
        step = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert (error.abs() <= step / 2 * (1 + 1e-5)).all()
        assert len(part[0].unique()) >= len(found[0, first : first + 32].unique())
    assert torch.equal(quantised(torch.zeros(2, 3), bits, 2), torch.zeros(2, 3))


def test_what_cannot_be_fitted_is_refused(data):
    x, y = data
    with pytest.raises(ValueError, match="strength is 0"):
        ridge(x.T @ x, x.T @ y, 0)
    for rank in (0, 6):
        with pytest.raises(ValueError, match=rf"rank is {rank}, expected 1\.\.5"):
            low_rank(x.T @ x, x.T @ y, rank, 0.1)
    with pytest.raises(ValueError, match=r"size is 7, expected 1\.\.6"):
        shared_basis((x.T @ x)[None], 7)
    with pytest.raises(ValueError, match="bits are 1"):
        quantised(x, 1, 8)
