"""Preparing inputs: chat template, padding, answers, precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_models import build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.inference.states import collect


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


def test_lists_of_prompts_may_be_of_any_kind() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    prompts, answers = ["what ?", "is red ?"], ["red", "blue"]
    expected = vlm.prepare(prompts, answers=answers)["input_ids"]
    for kind in (tuple, np.array, pd.Series, pd.Index, lambda texts: np.array(texts, dtype=object)):
        assert torch.equal(vlm.prepare(kind(prompts), answers=kind(answers))["input_ids"], expected)
    images = [picture(0), picture(250)]
    pixels = vlm.prepare(prompts, images)["pixel_values"]
    for several in (tuple(images), pd.Series(images)):
        assert torch.equal(vlm.prepare(prompts, several)["pixel_values"], pixels)


@pytest.mark.usefixtures("checks_off")
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("what is red ?", "prompts is one text, 'what is red .': pass a list with one prompt for each item"),
        (b"what ?", "prompts is of type bytes, expected a list of texts"),
        ({"what ?": 1}, "prompts is of type dict"),
        ({"what ?"}, "prompts is of type set"),
        (np.array("what ?"), "prompts is of type ndarray"),
        ((text for text in ["what ?"]), "prompts is of type generator"),
        (7, "prompts is of type int"),
        (["what ?", 3], r"prompts\[1\] is 3 of type int, expected a text"),
        ([["what ?"]], r"prompts\[0\] is \['what .'\] of type list"),
        (pd.Series(["what ?", None]), r"prompts\[1\] is (None|nan) of type"),
        (np.array([["what ?"]]), r"prompts\[0\] is .* of type ndarray"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(prompts: Any, message: str) -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    for call in (vlm.prepare, lambda texts: collect(vlm, texts, None, ["last"])):
        with pytest.raises(TypeError, match=message):
            call(prompts)
    said = message.replace("prompts", "answers").replace("prompt", "answer")
    with pytest.raises(TypeError, match=said):
        vlm.prepare(["what ?", "is ?"], answers=prompts)


@pytest.mark.usefixtures("checks_off")
def test_what_is_no_list_of_images_is_refused() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    one = picture(0)
    for images, message in (
        (one, "images is one PIL image: pass a list with one image for each prompt"),
        ("a.png", "images is a str, expected a list"),
        ([[one, one], [one, one]], r"images\[0\] is a list of 2: one image for each prompt is supported"),
        ([one, "a.png"], r"images\[1\] is a str, expected a PIL image: open it with PIL.Image.open"),
        ([one, Path("a.png")], r"images\[1\] is a PosixPath, expected a PIL image: open it"),
        ([np.zeros((16, 16, 3)), one], r"images\[0\] is a ndarray, .*: make it one with Image.fromarray"),
        (torch.zeros(2, 3, 16, 16), r"images\[0\] is a Tensor, .*Image.fromarray"),
        ([one, None], r"images\[1\] is a NoneType, .*: prepare prompts without an image by themselves"),
    ):
        with pytest.raises(TypeError, match=message):
            vlm.prepare(["what ?", "is ?"], images)
        if message.startswith(r"images\[1\] is a NoneType"):
            continue
        with pytest.raises(TypeError, match=message):
            collect(vlm, ["what ?", "is ?"], images, ["last"])
    with pytest.raises(ValueError, match=r"images\[0\] has no pixels: its size is 0 x 4"):
        vlm.prepare(["what ?"], [Image.new("RGB", (0, 4))])
    with pytest.raises(ValueError, match="takes no images: give the VLM the full processor"):
        VLM(vlm.model, vlm.tokenizer).prepare(["what ?"], [one])


def test_empty_texts_are_refused() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty: ' '"):
        vlm.prepare(["what ?", " "])
    with pytest.raises(ValueError, match=r"answers\[0\] is empty: ''"):
        vlm.prepare(["what ?"], answers=[""])
    inputs = vlm.prepare([""], [picture(0)])  # an image alone can be asked to be described
    assert vlm.tokenizer.decode(inputs["input_ids"][0]) == "<s> " + "<image> " * 4 + "answer :"
