"""The models that are measured: LLaVA with random weights, in three sizes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vlalign_utils import VLM

TEXT_BEFORE = 8  # tokens ahead of the image


@dataclass(frozen=True)
class Size:
    """Sizes of tower and decoder, tokens, how often each way is timed, and where it runs.

    `cloud` is for the geometry, which needs no model: layers, items and width of the states.
    """

    decoder: dict[str, int]
    tower: dict[str, int]
    text_tokens: int
    rounds: int
    cloud: tuple[int, int, int]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def image_tokens(self) -> int:
        """Patches of one picture."""
        return (self.tower["image_size"] // self.tower["patch_size"]) ** 2


def _shape(width: int, layers: int, heads: int, inner: int) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (width, layers, heads, inner), strict=True))


SIZES = {
    "tiny": Size(
        _shape(64, 4, 4, 172) | {"vocab_size": 500},
        _shape(64, 4, 4, 172) | {"image_size": 112, "patch_size": 14},
        text_tokens=24,
        rounds=3,
        cloud=(3, 200, 32),
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


def build(size: Size, batch: int = 1) -> tuple[VLM, dict[str, Tensor]]:
    """The model and a batch of different inputs. Raises ValueError when the size's device is not here."""
    if size.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this size needs a cuda device, and there is none here: use SIZE=small")
    torch.manual_seed(0)
    image = size.decoder["vocab_size"] - 1
    config: Any = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **size.tower},
        # Wider than the default, so that an edit changes the answer by far more than rounding does.
        text_config={
            "model_type": "llama",
            **size.decoder,
            "initializer_range": 1 / size.decoder["hidden_size"] ** 0.5,
        },
        image_token_index=image,
        dtype=size.dtype,
    )
    with torch.device(size.device):
        model = LlavaForConditionalGeneration(config).to(size.dtype).eval()
    ids = torch.randint(3, image, (batch, size.image_tokens + size.text_tokens))
    ids[:, TEXT_BEFORE : TEXT_BEFORE + size.image_tokens] = image
    side = size.tower["image_size"]
    pictures = torch.randn(batch, 3, side, side)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pictures.to(size.dtype),
    }
    return VLM(model), {name: value.to(size.device) for name, value in inputs.items()}
