"""Folders in the layout of hub repositories, and a hub that serves them without a network."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import SafetensorsRepoMetadata
from tiny_models import IMAGE, TEXT, WORDS, build, tiny_processor
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlalign_utils.loading import checkpoint, safetensors_headers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VISION_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <|vision_start|> <|image_pad|> <|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} answer : {% endif %}"
)


def write_llava(folder: Path, **weights: Any) -> Path:
    """The tiny LLaVA with its processor; `weights` go to save_pretrained."""
    build("llava")[0].model.save_pretrained(folder, **weights)
    tiny_processor().save_pretrained(folder)
    return folder


def write_video_model(folder: Path, model: nn.Module, processor: str, video_processor: str) -> Path:
    """A model whose processor also holds one for videos, as on the hub."""
    special = {"<|vision_end|>": 60, "<|vision_start|>": 61, "<|video_pad|>": 62, "<|image_pad|>": IMAGE}
    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])} | special
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        chat_template=VISION_TEMPLATE,
    )
    model.save_pretrained(folder)  # type: ignore[operator]
    fast.save_pretrained(folder)
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 1024},
        "processor_class": processor,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    videos = {"video_processor_type": video_processor}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    return folder


def write_language_model(folder: Path, seed: int = 5, **changes: Any) -> Path:
    """A Llama that fits the decoder of the tiny LLaVA, with four words less in its vocabulary."""
    wanted = {k: TEXT[k] for k in TEXT if k != "vocab_size"} | {"vocab_size": 60} | changes
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**wanted)).save_pretrained(folder, max_shard_size="20KB")
    return folder


def write_cache(cache: Path, folder: Path, name: str = "org/model", branch: str = "main") -> Path:
    """What the hub's client leaves behind after a download of `folder`."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / branch).write_text(COMMIT)
    return Path(shutil.copytree(folder, repo / "snapshots" / COMMIT))


class FakeHub:
    """Serves folders under hub ids, one commit each, and notes what is downloaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.repos: dict[str, Path] = {}
        self.cache = cache
        self.downloads: list[str] = []
        self.error: Exception | None = None
        self.gated: Any = False
        monkeypatch.setattr(checkpoint, "model_info", self.model_info)
        monkeypatch.setattr(checkpoint, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(safetensors_headers, "get_safetensors_metadata", self.get_safetensors_metadata)

    def model_info(self, name: str, revision: str | None = None) -> ModelInfo:
        if self.error is not None:
            raise self.error
        siblings = [{"rfilename": p.name} for p in self.repos[name].iterdir()]
        return ModelInfo(id=name, sha=COMMIT, siblings=siblings, gated=self.gated)

    def snapshot_download(self, name: str, revision: str, allow_patterns: list[str]) -> str:
        assert revision == COMMIT
        folder = self.cache / name.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.repos[name].iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, folder)
                self.downloads.append(f"{name}/{path.name}")
        return str(folder)

    def get_safetensors_metadata(self, name: str, revision: str) -> SafetensorsRepoMetadata:
        assert revision == COMMIT
        files = sorted(self.repos[name].glob("*.safetensors"))
        content = {path.name: parse_local_safetensors_file_metadata(path) for path in files}
        return SafetensorsRepoMetadata(
            metadata=None, sharded=len(files) > 1, weight_map={}, files_metadata=content
        )

    @property
    def weights(self) -> list[str]:
        """Files with weights that were downloaded."""
        return [name for name in self.downloads if name.endswith(".safetensors")]
