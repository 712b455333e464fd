import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlalign_utils import load_suite, load_vlm
from vlalign_utils.inference.scoring import batches
from vlalign_utils.tuning.answer_loss import Answers
from vlalign_utils.tuning.gradient_energy import gradient_energy, highest


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava", "aligned")


def test_it_is_the_mean_squared_norm_of_plain_gradients(vlm):
    data = list(batches(vlm, load_suite("attributes", 6, split="train"), batch_size=3))
    before = {name: p.clone() for name, p in vlm.model.named_parameters()}
    found = gradient_energy(vlm, data)
    by_hand = torch.zeros(vlm.n_layers, dtype=torch.float64)
    for batch in data:
        vlm.model.zero_grad()
        logits = vlm.model(**batch.inputs, use_cache=False).logits[:, :-1]
        answers = batch.answers[:, 1:]
        told = answers >= 0
        F.cross_entropy(logits[told], answers[told]).backward()
        for k, layer in enumerate(vlm.layers):
            own = [m.weight.grad for m in layer.modules() if isinstance(m, nn.Linear)]
            by_hand[k] += sum(g.double().square().sum() for g in own)
    vlm.model.zero_grad()
    assert found == pytest.approx((by_hand / len(data)).tolist(), rel=1e-4)
    assert all(torch.equal(before[name], p) for name, p in vlm.model.named_parameters())
    assert Answers(vlm, None)(0, data[0], 1.0).item() > 0


def test_there_must_be_a_batch(vlm):
    with pytest.raises(ValueError, match="there are no batches"):
        gradient_energy(vlm, [])


def test_other_precision_is_refused():
    half = load_vlm("zoo/llava", "aligned", dtype="bfloat16")
    data = list(batches(half, load_suite("attributes", 2, split="train"), batch_size=2))
    with pytest.raises(ValueError, match="must be in float32, not bfloat16: load with dtype='float32'"):
        gradient_energy(half, data)


def test_the_highest_come_in_order_and_of_two_alike_the_lower():
    assert highest([1.0, 5.0, 5.0, 0.0, 9.0], 2) == (1, 4)
    assert highest([2.0, 2.0, 2.0], 2) == (0, 1)
