import numpy as np
import pytest
import torch

from vlalign_utils import load_suite, load_vlm
from vlalign_utils.compression.calibration import Calibration, calibrate, module_of, rows
from vlalign_utils.inference.scoring import as_batch

ITEMS = load_suite("attributes", 6)


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava")


@torch.no_grad()
def by_hand(vlm):
    """Streams before, between and behind the two submodules of each layer, by hooks on a plain forward."""
    batch = as_batch(vlm, ITEMS, range(len(ITEMS)))
    kept, found, handles = batch.inputs["attention_mask"].flatten().bool(), {}, []

    def note(name, states):
        found[name] = states.flatten(0, 1)[kept].double()

    for k, layer in enumerate(vlm.layers):
        handles += [
            layer.register_forward_pre_hook(lambda m, a, k=k: note(("in", k), a[0])),
            layer.self_attn.register_forward_hook(lambda m, a, o, k=k: note(("attention", k), o[0])),
            layer.mlp.register_forward_hook(lambda m, a, o, k=k: note(("MLP", k), o)),
            layer.mlp.register_forward_pre_hook(lambda m, a, k=k: note(("MLP in", k), a[0])),
        ]
    vlm.model(**batch.inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_changes_are_those_of_plain_hooks(vlm):
    found, known = calibrate(vlm, ITEMS), by_hand(vlm)
    for k in range(vlm.n_layers):
        h = known["in", k]
        for part in ("attention", "MLP"):
            after = h + known[part, k]
            cosine = (h * after).sum(1) / h.norm(dim=1) / after.norm(dim=1)
            change = (1 - cosine + (after.norm(dim=1) / h.norm(dim=1) - 1).abs()).mean()
            assert found.change[k, part] == pytest.approx(float(change), rel=1e-4)
            h = after
        x = known["MLP in", k]
        np.testing.assert_allclose(found.inputs[k], (x.T @ x / len(x)).numpy(), rtol=1e-4, atol=1e-6)
    assert found.tokens == len(known["in", 0])


def test_padding_counts_for_nothing(vlm):
    short, long = sorted(ITEMS, key=lambda item: len(item.prompt))[:: len(ITEMS) - 1]
    alone = calibrate(vlm, [short]).tokens
    assert calibrate(vlm, [short, long]).tokens == alone + calibrate(vlm, [long]).tokens


def test_the_least_are_of_one_part_within_some_layers_and_the_earlier_of_equals():
    change = {(k, part): 1.0 for k in range(4) for part in ("attention", "MLP")} | {(2, "MLP"): 0.5}
    found = Calibration(change, {}, 1)
    assert found.least("MLP", 2) == [(0, "MLP"), (2, "MLP")]
    assert found.least("attention", 1, layers=[1, 3]) == [(1, "attention")]
    with pytest.raises(ValueError, match=r"number is 3, expected 0\.\.2 of MLP"):
        found.least("MLP", 3, layers=[0, 1])


def test_what_cannot_be_measured_is_refused(vlm):
    with pytest.raises(ValueError, match="no items"):
        calibrate(vlm, [])
    captions = [item.caption_version() for item in ITEMS[:2]]
    with pytest.raises(ValueError, match=r"layer \d does not run on these items"):
        calibrate(load_vlm("zoo/mllama"), captions)
    with pytest.raises(ValueError, match="6 states for 4 tokens"):
        rows(torch.zeros(2, 3, 5), torch.ones(4, dtype=torch.bool))


def test_a_family_with_other_norms_is_measured_too():
    gemma = load_vlm("zoo/gemma3")
    found = calibrate(gemma, ITEMS[:2])
    assert len(found.change) == 2 * gemma.n_layers
    assert all(0 < value < 10 for value in found.change.values())
    assert module_of(gemma, (0, "MLP")) is gemma.layers[0].mlp
