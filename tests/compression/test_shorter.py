import pytest
import torch
from sklearn.linear_model import Ridge

from vlalign_utils import load_suite, load_vlm
from vlalign_utils.compression import shorter
from vlalign_utils.compression.shorter import (
    fit_replacement,
    least_gap,
    save_without_layers,
    without_layers,
)
from vlalign_utils.inference.scoring import as_batch

ITEMS = load_suite("attributes", 8)


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava")


def logits(vlm, inputs=None):
    batch = as_batch(vlm, ITEMS, range(len(ITEMS))) if inputs is None else None
    inputs = batch.inputs if inputs is None else inputs
    with torch.no_grad():
        return vlm.model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def test_a_gap_passes_the_stream_on(vlm):
    batch = as_batch(vlm, ITEMS, range(len(ITEMS)))
    with without_layers(vlm, 3, 2):
        run = vlm.record(**batch.inputs)
    assert torch.equal(run.resid[3], run.resid[5])
    assert not torch.equal(run.resid[5], run.resid[6])


def test_the_gap_that_turns_the_stream_least_is_found_by_trying_all(vlm):
    batch = as_batch(vlm, ITEMS, range(len(ITEMS)))
    run, real = vlm.record(**batch.inputs), batch.inputs["attention_mask"].bool()

    def likeness(k):
        return torch.cosine_similarity(run.resid[k][real], run.resid[k + 2][real], dim=-1).mean()

    assert least_gap(vlm, ITEMS, 2, range(1, 8)) == max(range(1, 6), key=likeness)
    assert least_gap(vlm, ITEMS, 2, range(2, 4)) == 2
    with pytest.raises(ValueError, match="does not fit"):
        least_gap(vlm, ITEMS, 4, range(2, 4))


def test_the_matrix_is_the_ridge_regression_of_what_the_gap_adds(vlm):
    batch = as_batch(vlm, ITEMS, range(len(ITEMS)))
    given = []
    handle = vlm.layers[2].mlp.register_forward_hook(lambda m, a, output: given.append(output))
    run, real = vlm.record(**batch.inputs), batch.inputs["attention_mask"].bool()
    handle.remove()
    m, enters, leaves = (t[real].double().numpy() for t in (given[0], run.resid[3], run.resid[5]))
    alpha = 0.05 * float((m**2).sum(0).mean())
    known = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(m, leaves - (enters - m))
    found = fit_replacement(vlm, ITEMS, 3, 2, strength=0.05)
    torch.testing.assert_close(found, torch.tensor(known.coef_.T).float(), rtol=1e-3, atol=1e-4)


def test_a_replacement_comes_nearer_than_the_gap_alone(vlm):
    whole, matrix = logits(vlm), fit_replacement(vlm, ITEMS, 3, 2)
    errors = []
    for with_matrix in (matrix, None):
        with without_layers(vlm, 3, 2, with_matrix):
            errors.append(float((logits(vlm) - whole).norm()))
    assert errors[0] < 0.9 * errors[1]
    assert torch.equal(logits(vlm), whole)
    with pytest.raises(ValueError, match="layer 3 does not add what its MLP returns"):
        fit_replacement(load_vlm("zoo/gemma3"), ITEMS[:2], 4, 2)
    for first in (0, 7):
        with pytest.raises(ValueError, match="must lie within layers 1 to 7"):
            fit_replacement(vlm, ITEMS, first, 2)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3vl"])
def test_a_shorter_model_is_a_plain_folder_of_its_class(name, tmp_path):
    vlm = load_vlm(f"zoo/{name}")
    matrix = fit_replacement(vlm, ITEMS, 4, 2) if name == "llava" else None
    save_without_layers(vlm, tmp_path / "short", 4, 2, matrix)
    again = load_vlm(tmp_path / "short")
    assert (again.n_layers, type(again.model)) == (vlm.n_layers - 2, type(vlm.model))
    with without_layers(vlm, 4, 2, matrix):
        torch.testing.assert_close(logits(again), logits(vlm), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="is there already"):
        save_without_layers(vlm, tmp_path / "short", 4, 2)


def test_half_precision_is_taken_with_its_rounding(tmp_path):
    half = load_vlm("zoo/llava", dtype="bfloat16")
    matrix = fit_replacement(half, ITEMS[:4], 4, 2)
    save_without_layers(half, tmp_path / "short", 4, 2, matrix)
    assert load_vlm(tmp_path / "short", dtype="bfloat16").n_layers == 6


def test_a_bias_is_merged_too(tmp_path):
    vlm = load_vlm("zoo/llava")
    for layer in vlm.layers:
        layer.mlp.down_proj.bias = torch.nn.Parameter(torch.randn(vlm.d_model))
    matrix = fit_replacement(vlm, ITEMS, 4, 2)
    state = shorter._state(vlm, range(4, 6), matrix, 4)
    name = f"{vlm.anatomy.name}.3.mlp.down_proj"
    x = torch.randn(5, state[f"{name}.weight"].shape[1])
    merged = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    torch.testing.assert_close(merged, vlm.layers[3].mlp.down_proj(x) @ matrix, rtol=1e-3, atol=1e-3)


def test_a_model_that_comes_back_as_another_is_not_kept(vlm, tmp_path, monkeypatch):
    own = shorter._state
    monkeypatch.setattr(shorter, "_state", lambda v, gone, matrix, first: own(v, range(1, 3), matrix, first))
    with pytest.raises(ValueError, match="cannot be written without layers 4 to 5"):
        save_without_layers(vlm, tmp_path / "short", 4, 2)
    assert list(tmp_path.iterdir()) == []
