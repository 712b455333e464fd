"""Vision-language model of pretrained parts: SmolLM2 sees a tower's features through a connector.

Its class is data: a `PartsShell`. The tokens that an image takes are spare special ones of SmolLM2, so that
the vocabulary keeps its size.
"""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading.assembled import assemble
from vlalign_utils.loading.parts import LANGUAGE_MODEL, part_folder
from vlalign_utils.loading.spare_tokens import write_tokenizer
from vlalign_utils.loading.stage_file import Stage
from vlalign_utils.paths import sha256
from vlalign_utils.zoo.architecture import with_ids
from vlalign_utils.zoo.fast_vlm import fast_vlm
from vlalign_utils.zoo.parts_recipe import PartsShell

# SmolLM2's own, with contents in parts, and without its system prompt, which says who it is in 21 tokens.
CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ 'IMAGE_TEXT' }}{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def build_processor(shell: PartsShell | None = None) -> ProcessorMixin:
    """The processor of the model. None is FastVLM's class, here and below.

    Raises ValueError for a spare token that the language model does not have.
    """
    shell = shell or fast_vlm()
    images, own = dict(shell.image_processor), dict(shell.processor)
    image_class: Any = getattr(transformers, images.pop("image_processor_type"))
    processor_class: Any = getattr(transformers, own.pop("processor_class"))
    processor: ProcessorMixin = processor_class(
        image_processor=image_class(**images),
        tokenizer=_tokenizer(shell),
        chat_template=_chat_template(shell),
        **own,
    )
    return processor


def build_config(shell: PartsShell | None = None) -> PreTrainedConfig:
    """Configuration of the model; the language model's is that of the part."""
    shell = shell or fast_vlm()
    text = AutoConfig.from_pretrained(part_folder(LANGUAGE_MODEL.name))
    text._name_or_path = ""  # of the cache of this machine
    return AutoConfig.for_model(
        **with_ids(shell.model, _tokenizer(shell)),
        text_config=text.to_dict(),
        tie_word_embeddings=text.tie_word_embeddings,
    )


def fresh_model(
    seed: int,
    dtype: torch.dtype = torch.float32,
    weights: Collection[Path] = (),
    shell: PartsShell | None = None,
) -> PreTrainedModel:
    """The model before any training of it as a whole, in eval mode.

    Args:
        seed: of what no part and no file holds, such as the connector, drawn as PyTorch initialises it.
        dtype: precision to compute in; the weights themselves are rounded to bfloat16 first.
        weights: safetensors files with tensors of the model by name, such as a tuned tower.
        shell: the class around the parts.

    Raises:
        ValueError: when a part is not installed or a file does not fit.
    """
    shell = shell or fast_vlm()
    config, here = build_config(shell), Path()
    made_of = Stage(parts=shell.parts, weights={str(p.resolve()): sha256(p) for p in weights}, seed=seed)
    state = assemble(config, made_of, here)
    with without_messages():
        model: PreTrainedModel = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=dtype
        )
    model.generation_config = GenerationConfig.from_pretrained(part_folder(LANGUAGE_MODEL.name))
    return model.eval()


def _tokenizer(shell: PartsShell) -> PreTrainedTokenizerBase:
    with TemporaryDirectory() as folder:
        write_tokenizer(part_folder(LANGUAGE_MODEL.name), Path(folder), shell.tokens)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, chat_template=_chat_template(shell)
        )
    return tokenizer


def _chat_template(shell: PartsShell) -> str:
    return CHAT_TEMPLATE.replace("IMAGE_TEXT", shell.image_text)
