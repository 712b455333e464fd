"""Tiny random vision-language models of several families, and a processor for one of them."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlalign_utils import VLM
from vlalign_utils.data.items import Item

IMAGE, PAD = 63, 0
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
Inputs = dict[str, Tensor]
Built = tuple[Any, type, Inputs]


def tokens(n_image: int, n: int = 14) -> Inputs:
    """Two rows: one left padded by two, `n_image` placeholders in the middle of both."""
    ids = torch.randint(3, 50, (2, n), generator=torch.Generator().manual_seed(1))
    ids[0, :2] = PAD
    ids[:, 4 : 4 + n_image] = IMAGE
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def image_noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def llava() -> Built:
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return config, LlavaForConditionalGeneration, {**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)}


def gemma3() -> Built:
    """Image tokens attend both ways; sliding and full layers alternate."""
    config = transformers.Gemma3Config(
        vision_config=VISION,
        text_config={**TEXT, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
        image_token_index=IMAGE,
        boi_token_index=62,
        eoi_token_index=61,
        mm_tokens_per_image=4,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)}
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    return config, transformers.Gemma3ForConditionalGeneration, inputs


def qwen3_vl() -> Built:
    """DeepStack: vision features are added to image tokens between the first layers."""
    config = transformers.Qwen3VLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 16,
        },
        text_config={**TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        image_token_id=IMAGE,
        video_token_id=62,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(32, 96)}
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return config, transformers.Qwen3VLForConditionalGeneration, inputs


def gemma4() -> Built:
    """The last layers take keys and values from earlier ones through a mapping they share."""
    config = transformers.Gemma4Config(
        vision_config={
            **{k: VISION[k] for k in VISION if k != "image_size"},
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
        text_config={
            **TEXT,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "sliding_window": 4,
            "global_head_dim": 8,
        },
        audio_config=None,
        image_token_id=IMAGE,
        boi_token_id=62,
        eoi_token_id=61,
        video_token_id=60,
        audio_token_id=59,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 16, 48)}
    inputs["image_position_ids"] = torch.tensor([[[y, x] for y in range(4) for x in range(4)]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    return config, transformers.Gemma4ForConditionalGeneration, inputs


def mllama() -> Built:
    """Layer 1 is cross-attention to the image; no position holds image features."""
    config = transformers.MllamaConfig(
        vision_config={
            **{k: VISION[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size")},
            "num_global_layers": 1,
            "attention_heads": 2,
            "patch_size": 8,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
        text_config={**TEXT, "cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}},
        image_token_index=IMAGE,
    )
    inputs = {**tokens(1), "pixel_values": image_noise(2, 1, 1, 3, 16, 16)}
    inputs["aspect_ratio_ids"] = torch.ones(2, 1, dtype=torch.long)
    inputs["aspect_ratio_mask"] = torch.ones(2, 1, 1, dtype=torch.long)
    inputs["cross_attention_mask"] = torch.ones(2, 14, 1, 1, dtype=torch.long)
    return config, transformers.MllamaForConditionalGeneration, inputs


def idefics() -> Built:
    """Gated cross-attention blocks stand between the layers, the first of them before layer 0."""
    config = transformers.IdeficsConfig(
        **{
            k: TEXT[k]
            for k in TEXT
            if k not in ("head_dim", "num_key_value_heads", "max_position_embeddings")
        },
        additional_vocab_size=0,
        cross_layer_interval=2,
        use_resampler=False,
        vision_config={
            **{k: VISION[k] for k in VISION if k != "hidden_size"},
            "embed_dim": 16,
        },
    )
    inputs = {**tokens(0), "pixel_values": image_noise(2, 1, 3, 16, 16)}
    inputs["image_attention_mask"] = torch.ones(2, 14, 1, dtype=torch.long)
    return config, transformers.IdeficsForVisionText2Text, inputs


def lfm2_vl() -> Built:
    """Convolution layers, which mix tokens without attention, alternate with attention layers."""
    config = transformers.Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            **{k: VISION[k] for k in VISION if k != "image_size"},
            "patch_size": 4,
            "num_patches": 16,
        },
        text_config={
            **{k: TEXT[k] for k in TEXT if k != "head_dim"},
            "layer_types": ["conv", "full_attention"] * 2,
        },
        image_token_id=IMAGE,
        downsample_factor=2,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 16, 48)}
    inputs["spatial_shapes"] = torch.tensor([[4, 4]] * 2)
    inputs["pixel_attention_mask"] = torch.ones(2, 16, dtype=torch.long)
    return config, transformers.Lfm2VlForConditionalGeneration, inputs


FAMILIES: dict[str, Callable[[], Built]] = {
    build.__name__: build for build in (llava, gemma3, qwen3_vl, gemma4, mllama, idefics, lfm2_vl)
}
# Images among the tokens, added to several layers, and read by cross-attention.
FAST = ("llava", "qwen3_vl", "mllama")

each_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in FAMILIES]
)


def randomise(model: nn.Module) -> nn.Module:
    """Redraw every weight, zero-initialised gates too, large enough for each part to matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                std = 0.7 if "embed" in name else 1.5 / weight.shape[-1] ** 0.5
                weight.normal_(0, std, generator=generator)
            else:
                weight.normal_(0.5, 0.3, generator=generator)
    return model.eval()


@cache
def _pristine(family: str, attention: str) -> tuple[Any, Inputs]:
    config, model_class, inputs = FAMILIES[family]()
    config._attn_implementation = attention
    return randomise(model_class(config)), inputs


def build(family: str, attention: str = "sdpa") -> tuple[VLM, Inputs]:
    """A tiny random model of a family, free to be changed, and a batch of two inputs for it."""
    model, inputs = _pristine(family, attention)
    return VLM(deepcopy(model)), dict(inputs)


WORDS = [
    "what",
    "colour",
    "is",
    "the",
    "shape",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "answer",
    ":",
    "?",
    ".",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} answer : {% endif %}"
)


def tiny_processor() -> LlavaProcessor:
    """A processor for `llava()`: whole words, images of 16 x 16 pixels in patches of 8."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])} | {"<image>": IMAGE}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


QUESTIONS = [
    "what colour is the shape ?",
    "what is green ?",
    "is the square blue",
    "what red circle is the ?",
]
ITEMS = [
    Item(Image.new("RGB", (16, 16), colour), question, answer, ("red", "green", "blue square"), "g", "")
    for colour, question, answer in zip(
        ("red", "green", "blue", "white"), QUESTIONS, ("red", "blue square", "green", "red"), strict=True
    )
]
