import pytest
import torch
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.driver.connector import connector
from vlalign_utils.inference.scoring import batches
from vlalign_utils.interventions.random_connector import random_connector


@pytest.fixture
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def test_weights_keep_their_numbers_and_lose_their_order(vlm: VLM) -> None:
    before = [weight.detach().clone() for weight in connector(vlm)]
    with random_connector(vlm, seed=1):
        for weight, own in zip(connector(vlm), before, strict=True):
            assert torch.equal(weight.flatten().sort().values, own.flatten().sort().values)
            assert weight.numel() < 2 or own.unique().numel() < 2 or not torch.equal(weight, own)
    assert all(torch.equal(weight, own) for weight, own in zip(connector(vlm), before, strict=True))


def test_images_enter_otherwise_and_words_as_before(vlm: VLM) -> None:
    inputs = next(iter(batches(vlm, ITEMS, 2))).inputs
    plain = vlm.record(**inputs)
    with random_connector(vlm):
        changed = vlm.record(**inputs)
        with pytest.raises(KeyError), random_connector(vlm, 1):
            raise KeyError
    image = vlm.image_mask(plain.inputs, plain)
    assert image is not None
    assert not torch.isclose(plain.resid[0][image], changed.resid[0][image]).all()
    assert torch.equal(plain.resid[0][~image], changed.resid[0][~image])
    assert torch.equal(vlm.record(**inputs).resid[0], plain.resid[0])


def test_the_order_is_that_of_the_seed(vlm: VLM) -> None:
    found = []
    for seed in (0, 0, 1):
        with random_connector(vlm, seed):
            found.append(connector(vlm)[0].detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
