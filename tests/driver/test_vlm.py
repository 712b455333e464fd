"""Finding the parts of a model, and its image positions."""

import pytest
import torch
from tiny_models import FAMILIES, IMAGE, build, each_family
from torch import nn

from vlalign_utils import VLM


@each_family
def test_the_decoder_layers_are_found(family: str) -> None:
    vlm, inputs = build(family)
    assert (vlm.n_layers, vlm.d_model, vlm.device) == (4, 32, torch.device("cpu"))
    assert not any("Vision" in type(layer).__name__ for layer in vlm.layers)
    assert vlm.record(**inputs).resid[0].shape == (2, 14, 32)


def test_discovery_needs_no_weights() -> None:
    config, model_class, _ = FAMILIES["qwen3_vl"]()
    with torch.device("meta"):
        assert VLM(model_class(config)).n_layers == 4


def test_a_model_without_one_decoder_is_refused() -> None:
    vlm, _ = build("llava")
    vlm.model.config.text_config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"expected one list of 5 decoder layers .*, found none"):
        VLM(vlm.model)
    vlm.model.config.text_config.num_hidden_layers = 4
    vlm.model.model.language_model.more = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(ValueError, match=r"found \['layers', 'more'\]"):
        VLM(vlm.model)


def test_as_many_experts_as_layers_do_not_confuse() -> None:
    vlm, _ = build("llava")
    vlm.layers[0].experts = nn.ModuleList(nn.Identity() for _ in range(4))
    assert VLM(vlm.model).anatomy.name == "model.language_model.layers"


@each_family
def test_image_mask_declared_and_found_by_changing_pixels(family: str) -> None:
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    state = torch.get_rng_state()
    mask, found = vlm.image_mask(inputs), vlm.pixel_mask(inputs, run)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, vlm.pixel_mask(inputs))
    if family in ("mllama", "idefics"):  # cross-attention: pixels never occupy positions
        assert mask is None
        assert vlm.image_mask(inputs, run) is None
        assert not found.any()
    else:
        assert mask is not None
        assert torch.equal(mask, inputs["input_ids"] == IMAGE)
        assert torch.equal(found, mask)


@pytest.mark.parametrize("declared", [None, 5])
def test_image_mask_where_the_declared_id_is_missing_or_wrong(declared: int | None) -> None:
    vlm, inputs = build("llava")
    config = vlm.model.config
    vlm = VLM(vlm.model)
    vlm._image_ids = [] if declared is None else [declared]
    for _ in range(2):
        mask = vlm.image_mask(inputs)
        assert mask is not None
        assert torch.equal(mask, inputs["input_ids"] == config.image_token_id)


def test_image_mask_keeps_declared_positions_that_pixels_do_not_reach() -> None:
    """Such as the newlines of llava_next: part of the image, the same for every image."""
    vlm, inputs = build("llava")
    newline = int(inputs["input_ids"][0, 9])
    vlm._image_ids = [newline, IMAGE]
    mask = vlm.image_mask(inputs)
    assert mask is not None
    assert mask[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 9]


def test_image_mask_holds_before_the_connector_is_trained() -> None:
    vlm, inputs = build("llava")
    for weight in vlm.model.model.multi_modal_projector.parameters():
        weight.data.zero_()
    mask = vlm.image_mask(inputs)
    assert mask is not None
    assert torch.equal(mask, inputs["input_ids"] == IMAGE)


@pytest.mark.parametrize("family", ["mllama", "idefics"])
def test_pixels_that_say_nothing_decide_nothing(family: str) -> None:
    vlm, inputs = build(family)
    black = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    vlm.image_mask(black)
    assert vlm.image_source is None
    assert vlm.image_mask(inputs) is None


def test_image_mask_of_embeddings_in_place_of_ids() -> None:
    vlm, inputs = build("llava")
    expected = vlm.image_mask(inputs)
    embeds = vlm.model.get_input_embeddings()(inputs["input_ids"]).detach()
    given = {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}
    mask = vlm.image_mask(given)
    assert mask is not None
    assert expected is not None
    assert torch.equal(mask, expected)
    blind = vlm.image_mask({"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]})
    assert blind is not None
    assert blind.shape == (2, 14)
    assert not blind.any()


def test_image_mask_does_not_trust_a_run_of_other_inputs() -> None:
    vlm, inputs = build("llava")
    other = vlm.record(**{**inputs, "pixel_values": inputs["pixel_values"].flip(0)})
    mask = vlm.image_mask(inputs, other)
    assert mask is not None
    assert torch.equal(mask, inputs["input_ids"] == IMAGE)


def test_image_mask_of_text_alone_is_empty() -> None:
    vlm, inputs = build("llava")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    mask = vlm.image_mask({**text, "input_ids": text["input_ids"].clamp(max=50)})
    assert mask is not None
    assert mask.shape == (2, 14)
    assert not mask.any()
