"""Parameters require gradients, or are in float32, inside the block, and are as before after it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from vlalign_utils.tuning.trainable import in_float32, trainable


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    return model


def asked(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    before = asked(model), [(p.dtype, p.detach().clone(), p.grad) for p in model.parameters()]
    yield
    assert asked(model) == before[0]
    for p, (dtype, value, gradient) in zip(model.parameters(), before[1], strict=True):
        assert p.dtype == dtype
        assert torch.equal(p, value)
        assert p.grad is gradient


@pytest.mark.parametrize("names", [[], ["0.weight"], ["1.bias", "2.weight"]])
def test_exactly_these_require_gradients(names: list[str]) -> None:
    model = network()
    with as_before(model), trainable(model, (model.get_parameter(name) for name in names)):
        assert asked(model) == names


def test_an_error_restores_what_was() -> None:
    model = network()
    with as_before(model), pytest.raises(KeyboardInterrupt), trainable(model, [model[0].weight]):
        raise KeyboardInterrupt


def test_blocks_nest() -> None:
    model = network()
    with as_before(model), trainable(model, model[0].parameters()):
        with trainable(model, model[2].parameters()):
            assert asked(model) == ["2.weight", "2.bias"]
        assert asked(model) == ["0.weight", "0.bias"]


def test_modules_that_come_and_go_in_the_block_keep_their_own() -> None:
    model = network()
    first = model[0]
    with trainable(model, []):
        model[0] = nn.Linear(3, 4)
    assert model[0].weight.requires_grad
    assert not first.weight.requires_grad


def test_an_integer_weight_cannot_be_trained_and_nothing_stays_changed() -> None:
    model = network()
    model.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    before = asked(model)
    with pytest.raises(RuntimeError), trainable(model, [model.packed]):
        raise AssertionError("not reached")
    assert asked(model) == before


def test_a_parameter_of_another_model_is_refused() -> None:
    model = network()
    other = trainable(model, network().parameters())
    with as_before(model), pytest.raises(ValueError, match="none of Sequential's"), other:
        raise AssertionError("not reached")


def test_trained_weights_are_float32_and_come_back_bit_for_bit() -> None:
    model = network().to(torch.bfloat16)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    version = model[2].weight._version
    with as_before(model), in_float32(list(model[2].parameters())):
        assert {p.dtype for p in model[2].parameters()} == {torch.float32}
        assert model[1].weight.dtype == torch.bfloat16
        assert model[2].weight.grad is None
        with torch.no_grad():
            model[2].weight.add_(1)
        model[2].weight.grad = torch.zeros_like(model[2].weight)
    assert model[2].weight._version > version  # what was recorded with other values is found to be stale


def test_weights_that_are_not_in_memory_are_refused() -> None:
    model = network()
    model[2].to("meta")
    with pytest.raises(ValueError, match="offloaded or quantised"), in_float32(list(model.parameters())):
        raise AssertionError("not reached")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
