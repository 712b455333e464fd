"""FastVLM's class around SmolLM2 and EfficientNet-Lite0: each position of the tower's last map is a token."""

from vlalign_utils.loading.part_conversion import TIMM_NAME
from vlalign_utils.loading.parts import LANGUAGE_MODEL, VISION_TOWER
from vlalign_utils.loading.stage_file import Source
from vlalign_utils.zoo.parts_recipe import PartsShell

STRIDE = 32  # pixels of an image, along each side, for one token
PIXELS = 160  # side of an image: 25 tokens
WIDTH = 1280  # of the tower's features
IMAGE_TOKEN = "<empty_output>"  # a spare one of SmolLM2's, so that the vocabulary keeps its size


def fast_vlm(pixels: int = PIXELS) -> PartsShell:
    """The shell for square images with this many pixels a side, which are scaled to [-1, 1].

    Raises ValueError unless `pixels` is a multiple of 32.
    """
    if pixels % STRIDE:
        raise ValueError(f"pixels is {pixels}, expected a multiple of {STRIDE}")
    size = {"height": pixels, "width": pixels}
    return PartsShell(
        model={
            "model_type": "fast_vlm",
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": TIMM_NAME,
                "hidden_size": WIDTH,
                "num_features": WIDTH,
                "do_pooling": False,
                "model_args": {},
            },
            "image_token_id": IMAGE_TOKEN,
            "image_seq_length": (pixels // STRIDE) ** 2,
            "projector_hidden_act": "gelu",
        },
        parts={
            "model.language_model": Source(part=LANGUAGE_MODEL.name, module="model"),
            "model.vision_tower.timm_model": Source(part=VISION_TOWER.name, module="timm_model"),
        },
        image_text=IMAGE_TOKEN,
        image_processor={
            "image_processor_type": "CLIPImageProcessor",
            "size": size,
            "do_center_crop": False,
            "crop_size": size,
            "image_mean": [0.5, 0.5, 0.5],  # the tower was trained so
            "image_std": [0.5, 0.5, 0.5],
        },
        processor={
            "processor_class": "LlavaProcessor",
            "patch_size": STRIDE,
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
            "image_token": IMAGE_TOKEN,
        },
    )
