import pytest
import torch
from torch import nn

from vlalign_utils.zoo import compiled as module
from vlalign_utils.zoo.compiled import compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own
def test_compiled_layers_compute_the_same_and_are_themselves_again():
    layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2))
    x = torch.randn(3, 8)
    plain = [layer(x) for layer in layers]
    with compiled(layers):
        found = [layer(x) for layer in layers]
    torch.testing.assert_close(found, plain)
    assert all(layer._compiled_call_impl is None for layer in layers)


def test_nothing_is_compiled_without_a_compiler(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    layers = [nn.Linear(2, 2)]
    with compiled(layers):
        assert layers[0]._compiled_call_impl is None
