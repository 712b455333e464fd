import pytest
import torch
from clouds import cloud, unit

from vlalign_utils.analysis import neighbours
from vlalign_utils.analysis.prepared_layers import ascending, prepare


def test_prepared_layers_are_standardised_directions_lengths_and_neighbours() -> None:
    x = cloud(0, layers=3) * torch.tensor([1e-3, 1, 1e3, 1, 1]) + 2
    layers = prepare(x, 4)
    for i, states in enumerate(x):
        assert torch.allclose(layers.points[i], unit(states))
    assert torch.allclose(layers.features, neighbours.standardise(x))
    assert torch.equal(layers.neighbours, neighbours.layer_neighbours(x, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[1].fill_(1), r"layer 1: .*no direction"),
        (lambda x: x[1, 3].copy_(x[1, 10]), r"layer 1: only 39 of 40 items differ"),
        (lambda x: x[1, 3, 2].fill_(torch.nan), r"layer 1: .*NaN"),
    ],
)
def test_a_layer_without_neighbours_is_named(change, message: str) -> None:
    x = cloud(0, layers=2)
    change(x)
    with pytest.raises(ValueError, match=message):
        prepare(x, 4)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 10 neighbours need more than 10 items"):
        prepare(cloud(0, n=10), 10)


def test_numbers_are_sorted_along_the_last_axis() -> None:
    x = cloud(1)[0]
    assert torch.equal(ascending(x), x.sort(dim=-1).values)
