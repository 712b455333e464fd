import pytest
import torch
from torch import nn

from vlalign_utils import load_vlm
from vlalign_utils.compression.closed_form import quantised
from vlalign_utils.compression.rounding import rounded_layers


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava")


def test_linear_modules_of_the_layers_are_rounded_and_then_as_before(vlm):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    linear = {
        f"{vlm.anatomy.name}.{k}.{name}.weight"
        for k in (1, 2)
        for name, m in vlm.layers[k].named_modules()
        if isinstance(m, nn.Linear)
    }
    with rounded_layers(vlm, [1, 2], bits=4):
        for name, value in vlm.model.state_dict().items():
            expected = quantised(before[name], 4, 32) if name in linear else before[name]
            assert torch.equal(value, expected), name
    assert len(linear) == 14
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())


def test_what_rounding_would_miss_is_refused(vlm):
    vlm.layers[0].experts = nn.Parameter(torch.zeros(2, 3, 4))
    try:
        with (
            pytest.raises(ValueError, match="layer 0: experts is no weight"),
            rounded_layers(vlm, [0], bits=4),
        ):
            pass
    finally:
        del vlm.layers[0].experts


def test_a_body_that_fails_leaves_the_weights_as_they_were(vlm):
    weight = vlm.layers[0].mlp.up_proj.weight
    before = weight.clone()
    with pytest.raises(RuntimeError), rounded_layers(vlm, [0], bits=8):
        raise RuntimeError
    assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="bits are 1"), rounded_layers(vlm, [0], bits=1):
        pass
