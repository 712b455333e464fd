from typing import Any

import pytest
import torch
from tiny_models import build
from torch import nn

from vlalign_utils.driver.attention_weights import attention_weights


@pytest.mark.slow_except("llava", "mllama")
@pytest.mark.parametrize("family", ["llava", "mllama", "gemma3", "qwen3_vl", "lfm2_vl", "idefics"])
def test_weights_are_those_of_each_self_attention_and_sum_to_1(family: str) -> None:
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    found = attention_weights(vlm, run, lambda weights: weights.double().sum(-1))
    assert found
    if family == "mllama":  # whose layers have one of the two
        assert set(vlm.anatomy.cross_attentions().values()).isdisjoint(found)
    for sums in found.values():
        assert sums.shape[-1] == run.grid[1]
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


def test_a_model_that_gives_no_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    for layer in vlm.layers:
        attention: Any = layer.get_submodule("self_attn")
        forward = attention.forward
        monkeypatch.setattr(attention, "forward", lambda *a, f=forward, **k: (f(*a, **k)[0], None))
    assert isinstance(vlm.layers, nn.ModuleList)
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration gives no attention weights"):
        attention_weights(vlm, run, lambda weights: weights)
