"""Placeholders that hold no pixels: learned row ends belong to the image, but show nothing of it."""

import torch
import transformers
from tiny_models import IMAGE, TEXT, VISION, image_noise, randomise, tokens

from vlalign_utils import VLM
from vlalign_utils.inference.states import capture, token_masks


def onevision() -> tuple[VLM, dict[str, torch.Tensor]]:
    """4 positions of the whole image, then 2 rows of 2 positions and a row end each."""
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=IMAGE,
        video_token_index=62,
        image_grid_pinpoints=[[16, 16]],
    )
    config._attn_implementation = "sdpa"
    inputs = {**tokens(10, 20), "pixel_values": image_noise(2, 2, 3, 16, 16)}
    inputs |= {
        "image_sizes": torch.tensor([[16, 16]] * 2),
        "batch_num_images": torch.ones(2, dtype=torch.long),
    }
    return VLM(randomise(transformers.LlavaOnevisionForConditionalGeneration(config))), inputs


def test_the_last_image_token_depends_on_the_pixels() -> None:
    vlm, inputs = onevision()
    run = vlm.record(**inputs)
    image, shown = vlm.image_mask(inputs, run), vlm.pixel_tokens(inputs, run)
    assert image is not None
    assert shown is not None
    assert image.sum(-1).tolist() == [10, 10]
    assert shown[0, image[0]].tolist() == [True] * 4 + [True, True, False] * 2
    last = token_masks(vlm, run, ["last_image"])["last_image"]
    assert last.nonzero().tolist() == [[0, 12], [1, 12]]  # the 9th of the positions from 4 on
    entering = capture(vlm, inputs, ["last_image"])["last_image"][0]
    assert torch.equal(entering, run.resid[0][:, 12])
    assert not torch.equal(entering[0], entering[1])
