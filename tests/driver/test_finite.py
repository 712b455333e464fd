"""NaN and overflow end in an error that names the part of the model and the cause, never in a number."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.data.items import Item
from vlalign_utils.inference.scoring import evaluate
from vlalign_utils.inference.states import collect

PARTS = {
    "model.vision_tower.encoder.layers.0.mlp.fc2": "before the first layer, first in model.vision_tower",
    "model.multi_modal_projector.linear_1": "before the first layer, first in model.multi_modal_projector",
    "model.language_model.layers.2.mlp.up_proj": r"in layer 2, first in .*layers\.2\.mlp\.up_proj",
    "model.language_model.layers.0.input_layernorm": r"in layer 0, first in .*layers\.0\.input_layernorm",
    "model.language_model.norm": "after the last layer, first in model.language_model.norm",
    "lm_head": "after the last layer, first in lm_head",
}
ITEM = Item(None, "red circle", "blue", ("blue", "green"), "colour", "")


def spoilt(part: str, value: float, family: str = "llava") -> tuple[VLM, dict[str, Any]]:
    vlm, inputs = build(family)
    with torch.no_grad():
        vlm.model.get_submodule(part).weight.flatten()[0] = value
    return vlm, inputs


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", PARTS)
def test_a_weight_that_is_no_number_is_found(part: str, value: float) -> None:
    vlm, inputs = spoilt(part, value)
    with pytest.raises(ValueError, match=f"NaN or infinity {PARTS[part]}.*its weight weight holds NaN"):
        vlm.record(**inputs)
    with pytest.raises(ValueError, match=PARTS[part]):
        vlm.capabilities(inputs)


def test_a_vision_tower_behind_cross_attention_is_found() -> None:
    vlm, inputs = spoilt("model.multi_modal_projector", torch.nan, "mllama")
    with pytest.raises(ValueError, match=r"before the first layer, first in model\.multi_modal_projector"):
        vlm.record(**inputs)


@pytest.mark.slow
def test_overflow_of_float16_names_the_layer_and_the_remedy() -> None:
    vlm, inputs = build("llava")
    vlm.model.half()
    inputs = {k: v.half() if v.is_floating_point() else v for k, v in inputs.items()}
    vlm.self_test(vlm.record(**inputs))
    with torch.no_grad():
        vlm.layers[1].mlp.down_proj.weight.mul_(3e4)
    overflow = r"in layer 1, first in .*layers\.1.*exceed what float16 holds.*dtype=torch.bfloat16"
    with pytest.raises(ValueError, match=overflow):
        vlm.record(**inputs)
    assert vlm.record(stop=1, **inputs).resid[1].isfinite().all()  # below it nothing is wrong
    with pytest.raises(ValueError, match=overflow):
        vlm.record(stop=2, **inputs)
    vlm.model.float()
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    vlm.self_test(vlm.record(**inputs))


def test_nan_is_not_called_inexact() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    with torch.no_grad():
        vlm.layers[3].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="in layer 3"):
        vlm.self_test(replace(run, final=run.logits * torch.nan))


def test_pixels_that_are_no_numbers_are_named() -> None:
    vlm, inputs = build("llava")
    with pytest.raises(ValueError, match="the input pixel_values holds NaN"):
        vlm.record(**{**inputs, "pixel_values": inputs["pixel_values"] * torch.nan})


def test_padding_and_forbidden_words_do_not_count() -> None:
    vlm, inputs = build("llava")
    seen = inputs["attention_mask"].bool()

    def never(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.masked_fill(~seen[..., None], torch.nan)
        return logits.index_fill(-1, torch.tensor([5]), -torch.inf)

    vlm.model.lm_head.register_forward_hook(never)
    assert vlm.record(**inputs).logits[seen].isneginf().any()


def test_scores_and_states_are_never_made_of_nan() -> None:
    vlm, _ = spoilt("model.language_model.layers.2.mlp.up_proj", torch.nan)
    vlm = VLM(vlm.model, tiny_processor())
    with pytest.raises(ValueError, match="in layer 2, first in"):
        evaluate(vlm, [ITEM])
    with pytest.raises(ValueError, match="in layer 2, first in"):
        evaluate(vlm, [replace(ITEM, metric="caption")])
    with pytest.raises(ValueError, match="in layer 2, first in"):
        collect(vlm, ["red circle"], None, ["text"])
