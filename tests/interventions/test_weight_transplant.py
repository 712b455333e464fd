import numpy as np
import pytest
import torch
from plain_hooks import layers, probs
from tiny_models import ITEMS, build, tiny_processor
from torch import nn

from vlalign_utils import VLM
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.inference.scoring import Scores
from vlalign_utils.interventions.weight_transplant import (
    layer_sets,
    recovered,
    transplant_sweep,
    transplanted,
)


def other_stage(vlm: VLM) -> VLM:
    """The same model with every decoder weight moved, and another connector."""
    donor = VLM(build("llava")[0].model, tiny_processor())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in layers(donor):
            for weight in layer.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        for weight in donor.model.model.multi_modal_projector.parameters():
            weight.mul_(1.3)
    return donor


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@pytest.fixture(scope="module")
def donor(vlm: VLM) -> VLM:
    return other_stage(vlm)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_layers_are_lent_and_come_back_bit_by_bit(vlm: VLM, donor: VLM) -> None:
    before, theirs = snapshot(vlm.model), snapshot(donor.model)
    with transplanted(vlm, donor, [1, 3]) as lent:
        assert lent is vlm
        for k in range(vlm.n_layers):
            assert same(snapshot(vlm.layers[k]), snapshot(donor.layers[k])) == (k in (1, 3))
        outside = {k: v for k, v in before.items() if ".layers." not in k}
        assert same({k: snapshot(vlm.model)[k] for k in outside}, outside)
    with pytest.raises(RuntimeError, match="in the body"), transplanted(vlm, donor, [0, 0]):
        raise RuntimeError("in the body")
    assert same(snapshot(vlm.model), before)
    assert same(snapshot(donor.model), theirs)


@pytest.mark.slow
def test_sweep_equals_models_built_with_those_weights(vlm: VLM, donor: VLM) -> None:
    sets = layer_sets(4, 2)["window"] + [(), (0, 1, 2, 3), (0, 1)]
    found = transplant_sweep(vlm, donor, ITEMS, sets, batch_size=3)
    assert found.receiver.prob == pytest.approx(probs(vlm, ITEMS), rel=1e-4)
    assert found.donor.prob == pytest.approx(probs(donor, ITEMS), rel=1e-4)
    for column, chosen in enumerate(sets):
        mixed = VLM(build("llava")[0].model, tiny_processor())
        for k in chosen:
            layers(mixed)[k] = layers(other_stage(vlm))[k]
        assert found.prob[:, column] == pytest.approx(probs(mixed, ITEMS), rel=1e-4)
    # The connector is still the receiver's.
    assert found.prob[:, -2] != pytest.approx(found.donor.prob, rel=1e-3)
    assert found.correct.shape == (4, len(sets))


@pytest.mark.slow
def test_choice_items_are_scored_by_their_own_metric(vlm: VLM, donor: VLM) -> None:
    items = load_suite("compositional", 2)
    found = transplant_sweep(vlm, donor, items, [(), (0,)])
    assert isinstance(found.receiver, Scores)
    assert (found.prob[:, 0] == found.receiver.prob).all()


def test_sets_of_layers() -> None:
    assert layer_sets(3, 2) == {
        "cumulative from the bottom": [(), (0,), (0, 1), (0, 1, 2)],
        "cumulative from the top": [(), (2,), (1, 2), (0, 1, 2)],
        "window": [(0, 1), (1, 2)],
        "single layer": [(0,), (1,), (2,)],
    }
    every_other = layer_sets(5, 3, 2)
    assert [len(layers) for layers in every_other["cumulative from the top"]] == [0, 2, 4, 5]
    assert every_other["window"] == [(0, 1, 2), (2, 3, 4)]
    assert len(every_other["single layer"]) == 5


def test_recovered_is_the_share_of_the_difference() -> None:
    before, after = np.array([0.0, 0.2, 0.1]), np.array([1.0, 0.8, 0.9])
    scores = np.stack([before, after, (before + after) / 2], axis=1)
    found = recovered(scores, before, after)
    assert [interval.value for interval in found] == pytest.approx([0, 1, 0.5])
    assert (found[2].low, found[2].high) == pytest.approx((0.5, 0.5))
    with pytest.raises(ValueError, match="not clearly above 0"):
        recovered(scores, after, before)


def test_what_cannot_be_lent_is_refused(vlm: VLM, donor: VLM) -> None:
    with pytest.raises(ValueError, match="model's own"), transplanted(vlm, vlm, [0]):
        pass
    with pytest.raises(IndexError, match="layer is 4"), transplanted(vlm, donor, [4]):
        pass
    with pytest.raises(ValueError, match="at layer 0"), transplanted(vlm, build("gemma3")[0], [0]):
        pass
