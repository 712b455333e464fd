import pytest
import torch
from torch import nn

from vlalign_utils.zoo.centred import centred, mean_input


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def test_the_mean_is_over_all_rows_of_all_calls(layer):
    first, second = torch.rand(2, 3, 5), torch.rand(4, 5).bfloat16()
    model = nn.Sequential(nn.Identity(), layer)

    def run():
        assert not torch.is_grad_enabled()
        model(first)
        layer.bfloat16()(second)

    rows = torch.cat([first.flatten(0, 1), second.float()])
    torch.testing.assert_close(mean_input(layer, run), rows.mean(0))
    assert not layer._forward_pre_hooks


def test_a_layer_that_is_not_called_has_no_mean(layer):
    with pytest.raises(ValueError, match="Linear whose input is to be centred was not called"):
        mean_input(layer, lambda: None)


def test_steps_ignore_what_all_inputs_share(layer):
    """The gradient of the weights is that of inputs without their mean; before and after, nothing changed."""
    x = torch.rand(7, 5) + 3
    before, weight = layer(x), layer.weight.detach().clone()
    with centred(layer, x.mean(0)):
        torch.testing.assert_close(layer(x), before)
        layer(x).sum().backward()
        torch.testing.assert_close(layer.weight.grad, torch.zeros(3, 5), atol=1e-5, rtol=0)
        with torch.no_grad():
            layer.weight.mul_(2)
        inside = layer(x)
    torch.testing.assert_close(layer.weight, 2 * weight)
    torch.testing.assert_close(layer(x), inside)


def test_an_error_leaves_the_layer_whole(layer):
    x = torch.rand(2, 5)
    before = layer(x)
    with pytest.raises(RuntimeError), centred(layer, torch.ones(5)):
        raise RuntimeError
    torch.testing.assert_close(layer(x), before)


def test_a_layer_without_bias_is_refused():
    with (
        pytest.raises(ValueError, match="without a bias"),
        centred(nn.Linear(2, 2, bias=False), torch.ones(2)),
    ):
        pass
