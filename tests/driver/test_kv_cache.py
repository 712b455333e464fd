import pytest
import torch
from tiny_models import build

from vlalign_utils.driver.kv_cache import AttentionRecord, KVCache, PrefixKVCache, largest_cut, visible
from vlalign_utils.driver.recording import record


def seen(mask: torch.Tensor | None, causal: bool = True) -> AttentionRecord:
    return AttentionRecord(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), mask, causal)


def keys(*masks: torch.Tensor | None, causal: bool = True) -> KVCache:
    return KVCache((), {torch.nn.Identity(): seen(mask, causal) for mask in masks})


def test_keys_are_those_of_the_attention_and_recording_changes_nothing() -> None:
    vlm, inputs = build("llava")
    found = KVCache()
    run = record(vlm.anatomy, inputs, kv_cache=found)
    assert torch.equal(run.logits, vlm.record(**inputs).logits)
    attention = vlm.layers[2].self_attn
    assert len(found.seen) == 4
    with torch.no_grad():
        value = attention.v_proj(vlm.layers[2].input_layernorm(run.resid[2]))
    assert torch.equal(found.seen[attention].value.transpose(1, 2).flatten(2), value)


def test_layers_without_attention_have_none() -> None:
    vlm, inputs = build("lfm2_vl")
    with pytest.raises(ValueError, match="layer 0 mixes tokens in another way than attention"):
        record(vlm.anatomy, inputs, kv_cache=KVCache())


def test_earlier_keys_come_before_new_ones_for_every_row() -> None:
    key = torch.arange(2 * 4).view(2, 1, 4, 1).float()
    new = torch.full((6, 1, 1, 1), -1.0)
    joined, _ = PrefixKVCache(AttentionRecord(key, key, None, True), 3).update(new, new)
    assert joined.shape == (6, 1, 4, 1)
    assert joined[:, 0, :, 0].tolist() == [[0, 1, 2, -1], [4, 5, 6, -1]] * 3


def test_what_is_visible_whatever_the_form_of_the_mask() -> None:
    tril = torch.ones(4, 4).tril().bool()
    low = torch.finfo(torch.float32).min
    additive = torch.zeros(1, 1, 4, 4).masked_fill(~tril, low)
    for mask in (None, tril[None, None], additive):
        allowed = visible(seen(mask), 4)
        assert allowed is not None
        assert torch.equal(allowed[0], tril)
    everything = visible(seen(None, causal=False), 4)
    assert everything is not None
    assert everything.all()
    assert visible(seen(torch.ones(1, 4)), 4) is None


def test_a_cut_lies_where_no_earlier_token_sees_a_later_one() -> None:
    assert largest_cut(keys(None), 4, 3, None) == 3
    assert largest_cut(keys(None, causal=False), 4, 3, None) == 0
    block = torch.ones(4, 4).tril().bool()
    block[1:3, 1:3] = True  # tokens 1 and 2 see one another
    assert [largest_cut(keys(None, block[None, None]), 4, wanted, None) for wanted in (1, 2, 3)] == [1, 1, 3]
    assert largest_cut(keys(torch.ones(1, 4)), 4, 3, None) == 0  # no saying what is seen


def test_what_padding_sees_does_not_count() -> None:
    mask = torch.ones(4, 4).tril().bool()
    mask[0] = True  # a softmax over nothing has no meaning, so some models let padding see everything
    attended = torch.tensor([[False, True, True, True]])
    assert largest_cut(keys(mask[None, None]), 4, 2, None) == 0
    assert largest_cut(keys(mask[None, None]), 4, 2, attended) == 2
