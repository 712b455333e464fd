"""LoRA in two decoder layers of every vision-language family of transformers, without a line about any."""

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from test_conformance import FAMILIES, build
from torch import nn

from vlalign_utils.tuning.lora import adapted, parameter_count

pytestmark = pytest.mark.conformance
CHOSEN = (1, 2)
# Linear modules that give something else than W x, and are left alone.
ROUTERS = {"llama4": {"feed_forward.router"}}
# Linear modules that only choose, by rank, which keys a token may see: a choice has no gradient.
CHOOSING = ".indexer."


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_adapters_are_in_these_layers_only_and_leave_no_trace(name: str) -> None:
    vlm, inputs = build(name)
    logits = vlm.record(**inputs).logits
    modules = {n: id(module) for n, module in vlm.model.named_modules()}
    parameters = {n: (id(p), p._version, p.requires_grad) for n, p in vlm.model.named_parameters()}
    attributes = {n: sorted(vars(module)) for n, module in vlm.model.named_modules()}
    count = parameter_count(vlm, CHOSEN, 2)
    expected = {
        f"{vlm.anatomy.name}.{k}.{n}"
        for k in CHOSEN
        for n, module in vlm.layers[k].named_modules()
        if isinstance(module, nn.Linear) and n not in ROUTERS.get(name, ())
    }
    with adapted(vlm, CHOSEN, rank=2) as new:
        assert {n for n, m in vlm.model.named_modules() if isinstance(m, BaseTunerLayer)} == expected
        assert sum(p.numel() for p in new) == count
        run = vlm.record(**inputs)
        assert torch.equal(run.logits, logits)
        for b in new[1::2]:
            nn.init.normal_(b, generator=torch.Generator().manual_seed(5))
        replayed = vlm.replay(run, start=CHOSEN[0]).logits
        gradients = torch.autograd.grad(replayed.sum(), new, allow_unused=True)
        held = {id(p): n for n, p in vlm.model.named_parameters()}
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        lost = [held[id(p)] for p, found in zip(new, reached, strict=True) if not found]
        assert [n for n in lost if CHOOSING not in n] == []
    assert {n: id(module) for n, module in vlm.model.named_modules()} == modules
    assert {n: (id(p), p._version, p.requires_grad) for n, p in vlm.model.named_parameters()} == parameters
    assert {n: sorted(vars(module)) for n, module in vlm.model.named_modules()} == attributes
    assert torch.equal(vlm.record(**inputs).logits, logits)
