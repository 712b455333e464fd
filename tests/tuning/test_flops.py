import pytest
import torch
from tiny_models import build, each_family

from vlalign_utils.tuning.flops import Part, forward_flops, step_flops

each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@each_family
def test_parts_sum_to_the_total(family: str) -> None:
    vlm, inputs = build(family)
    with torch.no_grad():
        total = step_flops(lambda: vlm.model(**inputs, use_cache=False))
    forward = forward_flops(vlm, inputs)
    assert forward.total == total
    assert min(part.forward for part in (forward.tower, *forward.layers, forward.head)) > 0


@each_attention
def test_a_forward_by_hand(attention: str) -> None:
    forward = forward_flops(*build("llava", attention))
    tokens, width, inner, keys = 2 * 14, 32, 64, 16
    maps = [(width, width), (width, keys), (width, keys), (width, width)] + [(width, inner)] * 3
    scores = 2 * 2 * 4 * 14 * 14 * 8  # batch, heads, queries, keys, width of a head; and the same for values
    layer = Part(
        weights=sum(2 * tokens * a * b for a, b in maps),
        products=2 * scores if attention == "eager" else 0,
        fused=2 * scores if attention == "sdpa" else 0,
        adapters=sum(2 * tokens * (a + b) for a, b in maps),
    )
    assert forward.layers == (layer,) * 4
    assert forward.head == Part(weights=2 * tokens * width * 64)
    assert forward.connector == Part(weights=2 * 2 * 4 * (16 * width + width * width))


def test_hooks_are_gone_and_layers_that_do_not_run_cost_nothing() -> None:
    vlm, inputs = build("mllama")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    forward = forward_flops(vlm, text)
    assert forward.layers[1] == Part()
    assert all(forward.layers[k].forward for k in (0, 2, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vlm.model.modules())


def test_the_image_enters_where_cross_attention_reads_it() -> None:
    assert forward_flops(*build("mllama")).entry == 1
    assert forward_flops(*build("llava")).entry == 0


def test_operators_that_are_not_counted_are_refused() -> None:
    vlm, inputs = build("llava")
    vlm.layers[2].forward = lambda hidden, *_, **__: hidden
    with pytest.raises(ValueError, match="layer 2 ran and shows no FLOPs"):
        forward_flops(vlm, inputs)
