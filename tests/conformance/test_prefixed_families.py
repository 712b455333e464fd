"""In every family: gradients from a recorded prefix, read from disk, are those of the ordinary forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_conformance import FAMILIES, LAYERS, build
from torch import nn

from vlalign_utils import VLM
from vlalign_utils.tuning.prefix_cache import Prefixes

pytestmark = pytest.mark.conformance
START = LAYERS // 2
SHARED = f"layers below {START} hand keys and values to those above"
REFUSED = {"gemma3n": SHARED, "gemma4": SHARED, "mistral_large4": SHARED}  # and the reason


@contextmanager
def only_above(vlm: VLM) -> Iterator[list[nn.Parameter]]:
    """What is trained: these models are shared, so that everything comes back."""
    asked = [(p, p.requires_grad) for p in vlm.model.parameters()]
    vlm.model.requires_grad_(False)
    weights = [p for p in vlm.layers[START:].parameters() if p.is_floating_point()]
    try:
        for parameter in weights:
            parameter.requires_grad_(True)
        yield weights
    finally:
        for parameter, wanted in asked:
            parameter.requires_grad_(wanted)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_gradients_from_the_middle_are_those_of_the_forward(name: str, tmp_path: Path) -> None:
    vlm, inputs = build(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            Prefixes(vlm, [inputs], START, tmp_path)
        return
    Prefixes(vlm, [inputs], START, tmp_path).run(0)
    stored = Prefixes(vlm, [inputs], START, tmp_path)
    stored._record = None  # type: ignore[assignment, method-assign]  # it can only read
    with only_above(vlm) as weights:
        plain = vlm.model(**inputs, use_cache=False).logits
        replayed = vlm.replay(stored.run(0), start=START).logits
        assert torch.equal(plain, replayed)
        pairs = [
            torch.autograd.grad(logits.square().sum(), weights, allow_unused=True)
            for logits in (plain, replayed)
        ]
    assert any(gradient is not None and gradient.any() for gradient in pairs[0])
    for expected, found in zip(*pairs, strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or torch.equal(expected, found)
