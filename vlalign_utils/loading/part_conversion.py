"""Convert the published file of a pretrained part to a Hugging Face folder: configuration, safetensors.

Safe whatever is in the files: a GGUF file holds plain numbers, and of a pickle torch reads tensors alone.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

# Weights that were trained in TensorFlow: its padding and batch norm, and inputs from -1 to 1.
TIMM_NAME = "tf_efficientnet_lite0"
# What transformers keeps of a GGUF file, and what no longer holds for plain weights.
_OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id")


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the SmolLM2 of a GGUF file into a folder: weights decoded, in bfloat16, and its tokenizer.

    Quantisation of the file (4 bits for the layers, 8 for the embeddings) stays in the weights as noise.
    """
    place: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    quantised = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # transformers refuses to save what it has read from GGUF: the weights go into a model of their own.
    settings = {k: v for k, v in quantised.config.to_dict().items() if k not in _OF_THE_FILE}
    settings["rms_norm_eps"] = round(settings["rms_norm_eps"], 12)  # 1e-5, in the file as float32
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**place, model_max_length=settings["max_position_embeddings"])
    # The file names its way of splitting text "smollm", which transformers takes for that of GPT-2:
    # SmolLM's separates digits first.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


def convert_efficientnet(file: Path, folder: Path) -> None:
    """Write the EfficientNet-Lite0 of a pickled state dict into a folder, with its head for ImageNet.

    Its names are another implementation's, its tensors in the order of timm's. Raises ValueError unless
    every shape and the last part of every name agree.
    """
    import timm  # seconds of importing, for a conversion that happens once
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    settings: Any = timm.get_pretrained_cfg(TIMM_NAME)
    config = TimmWrapperConfig.from_dict(
        {
            "architecture": TIMM_NAME,
            "num_classes": settings.num_classes,
            "num_features": 1280,
            "hidden_size": 1280,
            "model_args": {},
            "pretrained_cfg": settings.to_dict(remove_source=True, remove_null=True),
        }
    )
    model = TimmWrapperForImageClassification(config)
    ours, theirs = model.timm_model.state_dict(), torch.load(file, weights_only=True)
    shapes = [[(k.rpartition(".")[2], v.shape) for k, v in state.items()] for state in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{file} does not hold the weights of timm's {TIMM_NAME} in its order")
    model.timm_model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    model.to(torch.bfloat16).save_pretrained(folder)
