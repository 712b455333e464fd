import torch
from torch import nn

from vlalign_utils.zoo.stage_weights import digest, rounded


def model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)


def test_a_digest_is_of_the_weights_and_not_of_the_precision_that_holds_them():
    assert digest(model(0)) == digest(model(0).float())
    assert digest(model(0)) != digest(model(1))


def test_weights_are_stored_in_bfloat16():
    layer = nn.Linear(2, 2)
    stored = rounded(dict(layer.named_parameters()))
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    torch.testing.assert_close(stored["weight"].float(), layer.weight.detach(), rtol=1 / 128, atol=0)
