"""What the trial finds where the answer is known: broken on purpose, or by the family's own making."""

from typing import Any

import pytest
import torch
from tiny_models import build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.driver.capabilities import MEANINGS, Finding
from vlalign_utils.driver.finite import NotFiniteError


def found(family: str) -> dict[str, bool | None]:
    vlm, inputs = build(family)
    return {name: finding.works for name, finding in vlm.capabilities(inputs).findings().items()}


def test_a_plain_decoder_allows_everything_but_cross_attention() -> None:
    assert found("llava") == {**dict.fromkeys(MEANINGS, True), "cross_off": False}


@pytest.mark.slow_except("gemma4-lacking2", "lfm2_vl-lacking4", "mllama-lacking3")
@pytest.mark.parametrize(
    ("family", "lacking"),
    [
        ("gemma3", {"causal", "cross_off"}),
        ("qwen3_vl", {"whole_state", "cross_off"}),
        ("gemma4", {"whole_state", "cross_off", "rows", "suffix"}),
        ("mllama", {"whole_state", "image_positions", "freeze", "knockout"}),
        ("lfm2_vl", {"knockout", "cross_off", "suffix"}),
    ],
)
def test_what_a_family_lacks(family: str, lacking: set[str]) -> None:
    assert {name for name, works in found(family).items() if not works} == lacking


def test_a_knockout_that_leaks_is_found_out() -> None:
    """A layer that mixes tokens beside its attention: nothing in its attention shows it."""
    vlm, inputs = build("llava")
    mlp = vlm.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) + x.cumsum(1)
    allowed = vlm.capabilities(inputs)
    assert allowed.knockout.works is False
    with pytest.raises(ValueError, match=r"does not allow knockout .* of the pixels' effect is left"):
        allowed.require("freeze", "knockout")


def test_a_replay_that_is_not_exact_is_found_out() -> None:
    vlm, inputs = build("llava")
    calls = iter(range(1000))
    head: Any = vlm.model.lm_head
    own = head.forward
    head.forward = lambda x: own(x) + next(calls)
    allowed = vlm.capabilities(inputs)
    assert allowed.replay.works is False
    assert {finding.works for finding in allowed.findings().values()} == {False, None}
    with pytest.raises(ValueError, match=r"does not allow replay .* differs from the recorded logits"):
        allowed.require("replay")


def test_a_row_alone_that_gives_nan_is_an_error() -> None:
    vlm, inputs = build("llava")
    mlp = vlm.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) * (torch.nan if len(x) == 1 else 1)
    with pytest.raises(NotFiniteError, match="gives NaN or infinity in layer 1"):
        vlm.capabilities(inputs)


@pytest.mark.slow
def test_an_input_that_counts_through_the_batch_leaves_padding_untried() -> None:
    vlm, inputs = build("llava")
    tower = vlm.model.model.vision_tower
    own = tower.forward

    def count(pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        assert pixel_values[[0]].shape[0] == 1
        return own(pixel_values[torch.arange(2)], **kwargs)

    tower.forward = count
    padding = vlm.capabilities(inputs).padding
    assert padding.works is None
    assert padding.detail.startswith("the trial's rows cannot be taken apart: index 1 is out of bounds")


def test_pixels_that_change_nothing_leave_the_cut_untried() -> None:
    vlm, inputs = build("llava")
    for weight in vlm.model.model.multi_modal_projector.parameters():
        weight.data.zero_()
    allowed = vlm.capabilities(inputs)
    assert allowed.image_positions.works  # declared by ids
    assert allowed.knockout == Finding(None, "pixels change nothing here even without a cut")


@pytest.mark.slow
def test_the_trial_is_made_once_on_what_there_is() -> None:
    vlm, inputs = build("llava")
    with pytest.raises(ValueError, match="give `inputs` with an image: it has no processor"):
        vlm.capabilities()
    with pytest.raises(ValueError, match="these hold no pixels"):
        vlm.capabilities({name: inputs[name] for name in ("input_ids", "attention_mask")})
    vlm.record(**inputs)
    state = torch.get_rng_state()
    allowed = vlm.capabilities()
    assert torch.equal(torch.get_rng_state(), state)
    assert vlm.capabilities() is allowed
    own = VLM(vlm.model, tiny_processor())
    assert own.capabilities().findings().keys() == MEANINGS.keys()
    assert str(own.capabilities()).count("\n") == len(MEANINGS)


@pytest.mark.slow
def test_a_processor_that_refuses_the_trial_leaves_it_out(caplog: pytest.LogCaptureFixture) -> None:
    vlm, _ = build("llava")
    text_only = VLM(vlm.model, tiny_processor().tokenizer)
    assert text_only.own_capabilities() is None
    assert text_only.own_capabilities() is None
    assert caplog.text.count("its processor refuses the trial: ") == 1
    assert "takes no images" in caplog.text
    own = VLM(vlm.model, tiny_processor())
    assert own.own_capabilities() is own.capabilities()
