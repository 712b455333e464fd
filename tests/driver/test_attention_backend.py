"""Attention is switched to one that takes masks, only where needed and only for the time."""

import logging
from typing import Any

import pytest
import torch
from tiny_models import build

from vlalign_utils import VLM
from vlalign_utils.driver.attention_backend import attention_for, attention_in_use


def flex(family: str = "llava") -> tuple[VLM, dict[str, torch.Tensor]]:
    vlm, inputs = build(family)
    vlm.model.set_attn_implementation("flex_attention")
    assert attention_in_use(vlm.layers) == {"flex_attention"}
    return vlm, inputs


def of_all(vlm: VLM) -> list[str]:
    return [m.config._attn_implementation for m in vlm.model.modules() if hasattr(m, "config")]


def test_masks_run_with_sdpa_and_the_own_attention_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    vlm, inputs = flex()
    before = of_all(vlm)
    plain, _ = build("llava")
    with caplog.at_level(logging.INFO, logger="vlalign"):
        for _ in range(2):
            with attention_for(vlm, "masks"):
                assert attention_in_use(vlm.layers) == {"sdpa"}
                assert torch.equal(vlm.record(**inputs).logits, plain.record(**inputs).logits)
            assert of_all(vlm) == before
    assert [r.getMessage() for r in caplog.records] == [
        "LlavaForConditionalGeneration: flex_attention cannot take a mask over query-key pairs, "
        "edits that need one run with sdpa"
    ]


def test_it_comes_back_after_an_error_too() -> None:
    vlm, _ = flex()
    with pytest.raises(KeyError), attention_for(vlm, "masks"):
        raise KeyError
    assert attention_in_use(vlm.layers) == {"flex_attention"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_nothing_changes_where_masks_are_taken(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = build("llava", attention)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("switched")

    monkeypatch.setattr(vlm.model, "set_attn_implementation", refuse)
    with attention_for(vlm, "masks"):
        assert attention_in_use(vlm.layers) == {attention}


def test_eager_where_the_class_has_no_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = flex()
    monkeypatch.setattr(type(vlm.model), "_supports_sdpa", False)
    with attention_for(vlm, "masks"):
        assert attention_in_use(vlm.layers) == {"eager"}
    assert attention_in_use(vlm.layers) == {"flex_attention"}


def test_a_class_that_cannot_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = flex()
    monkeypatch.setattr(vlm.model, "set_attn_implementation", lambda how: None)
    message = r"cannot leave flex_attention once it is loaded: load it with .*attn_implementation=\"sdpa\""
    with pytest.raises(ValueError, match=message), attention_for(vlm, "masks"):
        raise AssertionError("ran")


def test_an_unknown_need_is_refused(checks_off: None) -> None:
    vlm, _ = build("llava")
    need: Any = "speed"
    with (
        pytest.raises(ValueError, match="need='speed', expected masks, weights or any"),
        attention_for(vlm, need),
    ):
        raise AssertionError("ran")
