"""The processor of a checkpoint: whole where it can be built, composed where torchvision is missing."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_hub import write_video_model
from tiny_models import build
from transformers import LlavaProcessor

from vlalign_utils.loading import processors
from vlalign_utils.loading.composed_processor import ComposedProcessor
from vlalign_utils.loading.processors import load_processor
from vlalign_utils.loading.verbosity import quiet


@pytest.fixture
def video_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose processor wants torchvision, which is not there."""

    def wants_torchvision(*args: Any, **kwargs: Any) -> None:
        raise ImportError("\nQwen3VLVideoProcessor requires the Torchvision library but it was not found")

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", wants_torchvision)
    monkeypatch.setattr(processors, "is_torchvision_available", lambda: False)
    names = ("Qwen3VLProcessor", "Qwen3VLVideoProcessor")
    return write_video_model(tmp_path / "model", build("qwen3_vl")[0].model, *names)


def test_a_whole_processor(hub_folder: Path) -> None:
    with quiet():
        assert isinstance(load_processor("tiny", hub_folder), LlavaProcessor)


def test_a_composed_processor_says_so(video_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlalign"):
        found = load_processor("tiny", video_folder)
    assert isinstance(found, ComposedProcessor)
    assert "tiny: without torchvision its processor is replaced by its tokenizer and Qwen2VL" in caplog.text
    assert "<|image_pad|>" in found.chat_template


@pytest.mark.parametrize("jinja", [True, False])
def test_the_template_of_the_processor_comes_before_the_tokenizers(video_folder: Path, jinja: bool) -> None:
    if jinja:
        (video_folder / "chat_template.jinja").write_text("of the processor")
    else:
        (video_folder / "chat_template.jinja").unlink()
        (video_folder / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    found = load_processor("tiny", video_folder)
    assert found.apply_chat_template([{"role": "user", "content": "what ?"}], tokenize=False) == (
        "of the processor"
    )


def test_what_cannot_be_composed_needs_torchvision(video_folder: Path) -> None:
    (video_folder / "preprocessor_config.json").write_text("{}")
    (video_folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the processor of tiny needs torchvision, install it: without it"):
        load_processor("tiny", video_folder)


def test_a_broken_processor(hub_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(hub_folder, tmp_path / "copy"))
    (copy / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^the processor of tiny cannot be loaded: \S"):
        load_processor("tiny", copy)


def test_a_missing_package(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wants_more(*args: Any, **kwargs: Any) -> None:
        raise ImportError("needs the package phonemizer")

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", wants_more)
    with pytest.raises(
        ValueError, match="the processor of tiny cannot be built: needs the package phonemizer"
    ):
        load_processor("tiny", hub_folder)
