"""An untrained vision-language model of any family, and its processor, from a recipe's data alone."""

import inspect
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.driver.verbosity import without_progress_bars
from vlalign_utils.evidence.strict import Closed
from vlalign_utils.paths import atomic_folder


class Shell(Closed):
    """A family's architecture and how its processor writes an image. Patterns match whole dotted names."""

    model: dict[str, Any]  # for AutoConfig.for_model; a special token stands for its id
    tokens: dict[str, str]  # special tokens by the attribute that the processor asks the tokenizer for
    image_text: str  # what the chat template writes for an image
    image_processor: dict[str, Any]
    processor: dict[str, Any] | None = None  # what it takes besides its parts
    vision_tower: str  # pattern of one module
    connector: list[str] = Field(min_length=1)  # patterns of modules, between the tower and the text model
    # patterns of layers of the text model that only images use
    bridge: list[str] = Field(default_factory=list)
    # patterns of the ends of parameters' names, and their constant first value
    start: dict[str, float] = Field(default_factory=dict)


def build_tokenizer_for(recipe: Shell) -> PreTrainedTokenizerBase:
    """The world's tokenizer with the family's special tokens and its way to write an image."""
    return build_tokenizer(recipe.tokens, recipe.image_text)


def build_config(recipe: Shell, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The recipe's configuration; vocabulary size and ids of special tokens are the tokenizer's."""
    model: dict[str, Any] = with_ids(recipe.model, tokenizer)
    model["text_config"] |= {"vocab_size": len(tokenizer), **_ids(tokenizer)}
    return AutoConfig.for_model(**model)


def with_ids(settings: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Settings of a configuration with the ids of special tokens in the place of the tokens."""
    added = tokenizer.get_added_vocab()

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replaced(inner) for name, inner in value.items()}
        return added.get(value, value) if isinstance(value, str) else value

    return replaced(settings)


def build_processor(recipe: Shell, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """The family's processor, of the classes that transformers loads it with."""
    kind = type(AutoConfig.for_model(recipe.model["model_type"]))
    family: Any = PROCESSOR_MAPPING[kind]
    classes: Any = IMAGE_PROCESSOR_MAPPING[kind]
    parts = {"image_processor": classes["torchvision"](**recipe.image_processor), "tokenizer": tokenizer}
    if "video_processor" in family.get_attributes():
        videos: Any = VIDEO_PROCESSOR_MAPPING[kind]
        parts["video_processor"] = videos["torchvision"]()
    processor: ProcessorMixin = family(
        **parts, chat_template=tokenizer.chat_template, **(recipe.processor or {})
    )
    return processor


def build_model(recipe: Shell, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """An untrained model, the same for the same seed; its connector's outputs are of the tower's scale."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(build_config(recipe, tokenizer))
    model.generation_config.update(**_ids(tokenizer))
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in connector(model, recipe):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm):
                    module.reset_parameters()
        # Families begin at 0.02 or at zero: far below the word embeddings, and a zero hides the pixels.
        for weight, fan_in in _matrices(connector(model, recipe)):
            nn.init.normal_(weight, std=fan_in**-0.5)
        for pattern, value in recipe.start.items():
            gates = [p for name, p in model.named_parameters() if re.search(rf"(^|\.){pattern}$", name)]
            if not gates:
                raise ValueError(f"start: no parameter of {type(model).__name__} matches {pattern!r}")
            for gate in gates:
                gate.fill_(value)
    return model


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


def _matrices(parts: list[nn.Module]) -> Iterator[tuple[Tensor, int]]:
    for module in (inner for part in parts for inner in part.modules()):
        # A layer's matrix is written [out, in]; one that a module multiplies by itself, [in, out].
        side = 1 if isinstance(module, nn.Linear) else 0
        yield from ((w, w.shape[side]) for w in module.parameters(recurse=False) if w.ndim == 2)


def vision_tower(model: PreTrainedModel, recipe: Shell) -> nn.Module:
    """The module that sees pixels; the connector may lie within it."""
    return _named(model, recipe.vision_tower)[0]


def connector(model: PreTrainedModel, recipe: Shell) -> list[nn.Module]:
    """Modules between the vision tower and the text model, in the recipe's order."""
    return [module for pattern in recipe.connector for module in _named(model, pattern)]


def bridge(model: PreTrainedModel, recipe: Shell) -> list[nn.Module]:
    """Layers of the text model that only images use."""
    return [module for pattern in recipe.bridge for module in _named(model, pattern)]


def _named(model: PreTrainedModel, pattern: str) -> list[nn.Module]:
    found = [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]
    if not found:
        raise ValueError(f"no module of {type(model).__name__} matches {pattern!r}")
    return found


def image_features(
    model: PreTrainedModel, recipe: Shell, pixel_inputs: Mapping[str, Any]
) -> Float[Tensor, "images tokens dim"]:
    """Outputs of the connector for each image: a square grid of tokens, row by row, no class token.

    `pixel_inputs` is what the processor returns; inputs that the tower does not take are left out.
    Raises ValueError when the features are no square grid.
    """
    # Cross-attention models have no such method: there the connector takes the tower's output as it is.
    ask: Any = getattr(model, "get_image_features", None)
    tower = vision_tower(model, recipe)
    known = inspect.signature(ask or tower.forward).parameters
    output = (ask or tower)(**{name: value for name, value in pixel_inputs.items() if name in known})
    if ask is None:
        features = output.last_hidden_state
        for part in connector(model, recipe):
            features = part(features)
    else:
        features = getattr(output, "pooler_output", output)
        features = features if isinstance(features, Tensor) else torch.stack(list(features))
    features = features.flatten(end_dim=-3)  # [images, tokens, dim]
    spare = features.shape[1] - math.isqrt(features.shape[1]) ** 2
    if spare > 1:
        raise ValueError(
            f"{features.shape[1]} features of an image: neither a square grid, nor one and a class"
        )
    return features[:, spare:]


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write a stage, whole or not at all: weights in half precision, to be computed with in single.

    The model itself keeps its precision.
    """
    with atomic_folder(folder) as partial:
        with without_progress_bars():
            half = deepcopy(model).half()
            half.save_pretrained(partial)
            for config in (half.config, *(getattr(half.config, name) for name in half.config.sub_configs)):
                config.dtype = torch.float32
            half.config.save_pretrained(partial)
        processor.save_pretrained(partial)
        words = partial / "tokenizer.json"  # a third of its size without the indentation
        words.write_text(json.dumps(json.loads(words.read_bytes()), separators=(",", ":")))
        shutil.rmtree(folder, ignore_errors=True)
