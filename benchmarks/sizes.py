"""The models that are measured: LLaVA and two others with random weights, in three sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from vlalign_utils import VLM

TEXT_BEFORE = 8  # tokens ahead of the image


@dataclass(frozen=True)
class Size:
    """Sizes of tower and decoder, tokens, how often each way is timed, and where it runs.

    `cloud` is for the geometry, which needs no model: layers, items and width of the states. `batches` of one
    row are an epoch of a fine-tune.
    """

    decoder: dict[str, int]
    tower: dict[str, int]
    text_tokens: int
    rounds: int
    cloud: tuple[int, int, int]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batches: int = 8

    @property
    def image_tokens(self) -> int:
        """Patches of one image."""
        return (self.tower["image_size"] // self.tower["patch_size"]) ** 2

    @property
    def image_id(self) -> int:
        """Token id that stands for a part of an image; the three below it are a family's own marks."""
        return self.decoder["vocab_size"] - 1


def _shape(width: int, layers: int, heads: int, inner: int) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (width, layers, heads, inner), strict=True))


SIZES = {
    "tiny": Size(
        _shape(64, 4, 4, 172) | {"vocab_size": 500},
        _shape(64, 4, 4, 172) | {"image_size": 112, "patch_size": 14},
        text_tokens=24,
        rounds=1,
        cloud=(3, 200, 32),
        batches=2,
    ),
    "small": Size(
        _shape(512, 12, 8, 1376) | {"vocab_size": 2000},
        _shape(512, 12, 8, 1376) | {"image_size": 336, "patch_size": 14},
        text_tokens=64,
        rounds=3,
        cloud=(24, 5000, 1024),
    ),
    # LLaVA-1.5-7B: Vicuna and CLIP ViT-L/14 at 336 pixels.
    "7b": Size(
        _shape(4096, 32, 32, 11008) | {"vocab_size": 32064},
        _shape(1024, 24, 16, 4096) | {"image_size": 336, "patch_size": 14},
        text_tokens=64,
        rounds=5,
        cloud=(24, 5000, 1024),
        device="cuda",
        dtype=torch.bfloat16,
    ),
}


@dataclass(frozen=True)
class Parts:
    """A configuration, the tokens that an image becomes, and the inputs beside `input_ids` that it needs."""

    config: Any
    image_tokens: int
    pixels: dict[str, Tensor]
    marks: str = ""  # the input that tells image tokens from others


def _text(size: Size) -> dict[str, Any]:
    width, heads = size.decoder["hidden_size"], size.decoder["num_attention_heads"]
    # Wider than the default, so that an edit changes the answer by far more than rounding does.
    return {**size.decoder, "num_key_value_heads": heads, "initializer_range": 1 / width**0.5}


def _images(size: Size, batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, size.tower["image_size"], size.tower["image_size"])}


def llava(size: Size, batch: int) -> Parts:
    """A token for every patch."""
    config: Any = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **size.tower},
        text_config={"model_type": "llama", **_text(size)},
        image_token_index=size.image_id,
    )
    return Parts(config, size.image_tokens, _images(size, batch))


def qwen3_vl(size: Size, batch: int) -> Parts:
    """Four patches merge into a token; features of three tower layers enter the first decoder layers too."""
    width, depth, patch = (size.tower[k] for k in ("hidden_size", "num_hidden_layers", "patch_size"))
    half = size.decoder["hidden_size"] // size.decoder["num_attention_heads"] // 2
    config: Any = transformers.Qwen3VLConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": size.tower["intermediate_size"],
            "depth": depth,
            "num_heads": size.tower["num_attention_heads"],
            "patch_size": patch,
            "out_hidden_size": size.decoder["hidden_size"],
            "deepstack_visual_indexes": [depth * part // 4 for part in (1, 2, 3)],
        },
        text_config={
            **_text(size),
            "head_dim": 2 * half,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": [half - 2 * (half // 3)] + [half // 3] * 2,
            },
        },
        image_token_id=size.image_id,
        video_token_id=size.image_id - 1,
        vision_start_token_id=size.image_id - 2,
        vision_end_token_id=size.image_id - 3,
    )
    side = size.tower["image_size"] // patch
    pixels = {
        "pixel_values": torch.randn(batch * side**2, 3 * 2 * patch**2),  # an image counts as two frames
        "image_grid_thw": torch.tensor([[1, side, side]] * batch),
    }
    return Parts(config, size.image_tokens // 4, pixels, "mm_token_type_ids")


def gemma3(size: Size, batch: int) -> Parts:
    """Four patches are averaged into a token; image tokens attend both ways."""
    config: Any = transformers.Gemma3Config(
        vision_config=size.tower,
        text_config=_text(size)
        | {"head_dim": size.decoder["hidden_size"] // size.decoder["num_attention_heads"]},
        mm_tokens_per_image=size.image_tokens // 4,
        image_token_index=size.image_id,
        boi_token_index=size.image_id - 1,
        eoi_token_index=size.image_id - 2,
    )
    return Parts(config, size.image_tokens // 4, _images(size, batch), "token_type_ids")


Architecture = Callable[[Size, int], Parts]
ARCHITECTURES: dict[str, Architecture] = {"LLaVA": llava, "Qwen3-VL": qwen3_vl, "Gemma 3": gemma3}


def check_device(size: Size) -> None:
    """Raises ValueError when the size's device is not here."""
    if size.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this size needs a cuda device, and there is none here: use SIZE=small")


def build(size: Size, batch: int = 1, architecture: Architecture = llava) -> tuple[VLM, dict[str, Tensor]]:
    """The model and a batch of different inputs. Raises ValueError when the size's device is not here."""
    check_device(size)
    torch.manual_seed(0)
    parts = architecture(size, batch)
    model_class: Any = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(parts.config)]
    with torch.device(size.device):
        model = model_class(parts.config).to(size.dtype).eval()
    ids = torch.randint(3, size.image_id - 3, (batch, parts.image_tokens + size.text_tokens))
    ids[:, TEXT_BEFORE : TEXT_BEFORE + parts.image_tokens] = size.image_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **parts.pixels}
    if parts.marks:
        inputs[parts.marks] = (ids == size.image_id).long()
    inputs["pixel_values"] = inputs["pixel_values"].to(size.dtype)
    return VLM(model), {name: value.to(size.device) for name, value in inputs.items()}
