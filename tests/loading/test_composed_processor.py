"""Processors that cannot be built without torchvision: tokenizer and image processor, composed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tiny_hub import write_video_model
from tiny_models import IMAGE, TEXT, VISION, build, randomise
from transformers.utils import is_torchvision_available

from vlalign_utils import VLM, load_vlm
from vlalign_utils.loading.composed_processor import ComposedProcessor


def picture(width: int, height: int, red: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), (red, 90, 160))


def qwen2_5_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **TEXT,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        image_token_id=IMAGE,
        video_token_id=62,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    return randomise(transformers.Qwen2_5_VLForConditionalGeneration(config))


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    three = request.param == "qwen3_vl"
    model = build("qwen3_vl")[0].model if three else qwen2_5_vl()
    names = ("Qwen3VLProcessor", "Qwen3VLVideoProcessor")
    names = names if three else ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor")
    return load_vlm(write_video_model(folder, model, *names), device="cpu")


def test_images_take_as_many_positions_as_the_model_has_features(vlm: VLM) -> None:
    assert isinstance(vlm.processor, ComposedProcessor) is not is_torchvision_available()
    pictures = [picture(20, 16), picture(40, 16)]
    inputs = vlm.prepare(["what colour is the shape ?", "what ?"], images=pictures)
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == [4, 10]
    text = vlm.tokenizer.batch_decode(inputs["input_ids"])[1].replace("<pad>", "").split()
    image = ["<|vision_start|>", *["<|image_pad|>"] * 10, "<|vision_end|>"]
    assert text == ["<s>", *image, "what", "?", "answer", ":"]
    run = vlm.record(**inputs)
    vlm.self_test(run)
    mask = vlm.image_mask(inputs, run)
    assert mask is not None
    assert torch.equal(mask, inputs["input_ids"] == IMAGE)
    assert torch.equal(vlm.pixel_mask(inputs, run), mask)
    # A row is the same alone as in the batch: its positions count its own image.
    alone = vlm.record(**vlm.prepare(["what ?"], images=[pictures[1]]))
    n = alone.logits.shape[1]
    torch.testing.assert_close(run.logits[1, -n:], alone.logits[0], rtol=1e-4, atol=1e-4)


def test_token_types_mark_the_images(vlm: VLM) -> None:
    inputs = vlm.prepare(["what ?"], images=[picture(20, 16)])
    if "mm_token_type_ids" in vlm.anatomy.input_names():
        assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == IMAGE).long())
    assert {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"} <= set(inputs)


def test_text_alone_needs_no_image(vlm: VLM) -> None:
    inputs = vlm.prepare(["what ?"], answers=["red"])
    assert vlm.tokenizer.decode(inputs["input_ids"][0]) == "<s> what ? answer : red </s>"
    assert "pixel_values" not in inputs
    vlm.self_test(vlm.record(**inputs))


@pytest.fixture
def processor(vlm: VLM) -> ComposedProcessor:
    """Composed by hand, for the model's own would serve where torchvision is there."""
    own = ComposedProcessor(vlm.tokenizer, vlm.processor.image_processor)
    own.model = vlm.model
    return own


def test_called_as_a_processor_is(processor: ComposedProcessor) -> None:
    two = "<|image_pad|> what <|image_pad|> ?"
    pair = processor(text=two, images=[picture(20, 16), picture(40, 16)], return_tensors="pt")
    assert (pair["input_ids"] == IMAGE).sum().item() == 14
    assert pair["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 10]]
    one = processor(text="<|image_pad|> ?", images=picture(20, 16), return_tensors="pt")
    assert processor.batch_decode(one["input_ids"])[0].count("<|image_pad|>") == 4
    assert processor.decode(one["input_ids"][0]).endswith("?")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    assert "<|image_pad|> <|vision_end|> what ?" in processor.apply_chat_template(turn, tokenize=False)


def test_images_and_placeholders_must_agree(processor: ComposedProcessor) -> None:
    with pytest.raises(ValueError, match=r"1 images but 2 placeholders <\|image_pad\|> in the text"):
        processor(text="<|image_pad|> <|image_pad|>", images=picture(20, 16))
    with pytest.raises(ValueError, match="1 images but 0 placeholders"):
        processor(text="what ?", images=[picture(20, 16)])
    with pytest.raises(ValueError, match="text is missing"):
        processor(images=picture(20, 16))


def test_features_are_counted_once_for_each_size(
    processor: ComposedProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processor.n_features(picture(20, 16, 10)) == 4

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the vision tower ran again")

    monkeypatch.setattr(processor.model, "get_image_features", refuse)
    assert processor.n_features(picture(20, 16, 250)) == 4


def smolvlm() -> Any:
    """Images are cut into tiles, padded to as many as the largest of the batch has."""
    return transformers.SmolVLMForConditionalGeneration(
        transformers.SmolVLMConfig(
            vision_config={**VISION, "model_type": "smolvlm_vision", "patch_size": 4},
            text_config={"model_type": "llama", **TEXT},
            image_token_id=IMAGE,
            scale_factor=2,
        )
    )


def internvl() -> Any:
    """Images are cut into tiles that all stand in one batch."""
    return transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
            text_config={"model_type": "qwen2", **TEXT},
            image_token_id=IMAGE,
            image_seq_length=4,
        )
    )


TILES = {
    "size": {"longest_edge": 32},
    "max_image_size": {"longest_edge": 16},
    "image_processor_type": "SmolVLMImageProcessor",
}
PATCHES = {
    "size": {"height": 16, "width": 16},
    "crop_to_patches": True,
    "max_patches": 3,
    "image_processor_type": "GotOcr2ImageProcessor",
}


@pytest.mark.parametrize(
    ("build_model", "pictures", "features"), [(smolvlm, TILES, [20, 12]), (internvl, PATCHES, [4, 16])]
)
def test_images_cut_into_tiles(
    tmp_path: Path, build_model: Any, pictures: dict[str, Any], features: list[int]
) -> None:
    folder = write_video_model(tmp_path / "model", randomise(build_model()), "", "")
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    processor = ComposedProcessor(
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoImageProcessor.from_pretrained(folder),
    )
    vlm = load_vlm(folder, device="cpu", processor=processor)
    inputs = vlm.prepare(["what ?", "what colour ?"], images=[picture(20, 16), picture(48, 16)])
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == features
    vlm.self_test(vlm.record(**inputs))
