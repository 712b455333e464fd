"""Vision-language model of pretrained parts: SmolLM2 sees EfficientNet's features through a connector.

The class is FastVLM's: each position of the tower's last feature map becomes one token. The token that an
image takes is one of SmolLM2's spare special ones, so that the vocabulary keeps its size.
"""

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GenerationConfig,
    LlavaProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
)

from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading.assembled import assemble
from vlalign_utils.loading.parts import LANGUAGE_MODEL, VISION_TOWER, part_folder
from vlalign_utils.loading.stage_file import Source, Stage
from vlalign_utils.paths import sha256

PARTS = {
    "model.language_model": Source(part=LANGUAGE_MODEL.name, module="model"),
    "model.vision_tower.timm_model": Source(part=VISION_TOWER.name, module="timm_model"),
}
IMAGE_TOKEN = "<empty_output>"
STRIDE = 32  # pixels of an image, along each side, for one token
PIXELS = 160  # side of an image: 25 tokens
# SmolLM2's own, with contents in parts, and without its system prompt, which says who it is in 21 tokens.
CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<empty_output>' }}{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def build_processor(pixels: int = PIXELS) -> LlavaProcessor:
    """The processor of the model: images are resized to a square and scaled to [-1, 1].

    `pixels` is the side of that square, a multiple of 32. Raises ValueError for another one.
    """
    if pixels % STRIDE:
        raise ValueError(f"pixels is {pixels}, expected a multiple of {STRIDE}")
    size = {"height": pixels, "width": pixels}
    images = CLIPImageProcessor(
        size=size,
        do_center_crop=False,
        crop_size=size,
        image_mean=[0.5, 0.5, 0.5],  # the tower was trained so
        image_std=[0.5, 0.5, 0.5],
    )
    tokenizer = AutoTokenizer.from_pretrained(part_folder(LANGUAGE_MODEL.name), chat_template=CHAT_TEMPLATE)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def fresh_model(
    seed: int, dtype: torch.dtype = torch.float32, weights: Collection[Path] = (), pixels: int = PIXELS
) -> PreTrainedModel:
    """The model before any training of it as a whole, in eval mode; its connector is drawn from `seed`.

    Args:
        seed: of the connector, two `nn.Linear` as PyTorch initialises them, the start of LLaVA's training.
        dtype: precision to compute in; the weights themselves are rounded to bfloat16 first.
        weights: safetensors files with tensors of the model by name, such as a tuned tower.
        pixels: side of an image.

    Raises:
        ValueError: when a part is not installed or a file does not fit.
    """
    config, here = build_config(pixels), Path()
    made_of = Stage(parts=PARTS, weights={str(p.resolve()): sha256(p) for p in weights}, seed=seed)
    state = assemble(config, made_of, here)
    with without_messages():
        model: PreTrainedModel = FastVlmForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype
        )
    model.generation_config = GenerationConfig.from_pretrained(part_folder(LANGUAGE_MODEL.name))
    return model.eval()


def build_config(pixels: int = PIXELS) -> FastVlmConfig:
    """Configuration of the model for square images with this many pixels a side."""
    text = AutoConfig.from_pretrained(part_folder(LANGUAGE_MODEL.name))
    text._name_or_path = ""  # of the cache of this machine
    seen = AutoConfig.from_pretrained(part_folder(VISION_TOWER.name))
    vision = TimmWrapperConfig(
        architecture=seen.architecture,
        hidden_size=seen.hidden_size,
        num_features=seen.hidden_size,
        do_pooling=False,
        model_args={},
    )
    tokenizer = AutoTokenizer.from_pretrained(part_folder(LANGUAGE_MODEL.name))
    return FastVlmConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(pixels // STRIDE) ** 2,
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )
