"""Preparing inputs: chat template, padding, answers, precision."""

import pytest
import torch
from PIL import Image
from tiny_models import build, tiny_processor

from vlalign_utils import VLM


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (20, 16), (red, 90, 160))


def test_prepare_pads_left_and_places_one_image_per_prompt() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    prompts = ["what colour is the shape ?", "what ?"]
    inputs = vlm.prepare(prompts, images=[picture(0), picture(250)])
    text = vlm.tokenizer.batch_decode(inputs["input_ids"])
    image = "<image> " * 4
    assert text[0] == f"<s> {image}what colour is the shape ? answer :"
    assert text[1] == "<pad> " * 4 + f"<s> {image}what ? answer :"
    assert inputs["attention_mask"].sum(1).tolist() == [13, 9]
    assert inputs["attention_mask"][1, :4].sum() == 0
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    run = vlm.record(**inputs)
    vlm.self_test(run)
    alone = vlm.record(**vlm.prepare(prompts[1:], images=[picture(250)]))
    torch.testing.assert_close(run.logits[1, 4:], alone.logits[0], rtol=1e-4, atol=1e-4)


def test_prepare_appends_answers_and_follows_the_models_precision() -> None:
    vlm = VLM(build("llava")[0].model.bfloat16(), tiny_processor())
    inputs = vlm.prepare(["what ?"], images=[picture(0)], answers=["red"])
    assert vlm.tokenizer.decode(inputs["input_ids"][0]).endswith("answer : red </s>")
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.long
    text_only = vlm.prepare(["what ?"])
    assert vlm.tokenizer.decode(text_only["input_ids"][0]) == "<s> what ? answer :"
    assert "pixel_values" not in text_only


def test_prepare_says_what_is_wrong() -> None:
    model = build("llava")[0].model
    with pytest.raises(ValueError, match="has no processor"):
        VLM(model).prepare(["what ?"])
    vlm = VLM(model, tiny_processor())
    with pytest.raises(ValueError, match="2 prompts but 1 images"):
        vlm.prepare(["what ?", "is ?"], images=[picture(0)])
    with pytest.raises(ValueError, match="1 prompts but 0 answers"):
        vlm.prepare(["what ?"], answers=[])
    with pytest.raises(ValueError, match="prompts is empty"):
        vlm.prepare([])
    vlm.processor.chat_template = None
    with pytest.raises(ValueError, match="has a chat template"):
        vlm.prepare(["what ?"])
