"""The processor of a checkpoint: its own, or an error that says why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor

from vlalign_utils.driver.verbosity import without_progress_bars
from vlalign_utils.loading import processors
from vlalign_utils.loading.processors import load_processor


@pytest.fixture
def copy(hub_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hub_folder, tmp_path / "copy"))


def test_the_processor_of_a_folder(hub_folder: Path) -> None:
    with without_progress_bars():
        assert isinstance(load_processor("tiny", hub_folder), LlavaProcessor)


@pytest.mark.parametrize("template", ["chat_template.jinja", "chat_template.json"])
def test_the_template_wherever_it_stands(copy: Path, template: str) -> None:
    text = "{% for m in messages %}<{{ m['role'] }}>{% endfor %}"
    (copy / "chat_template.jinja").unlink()
    whole = json.dumps({"chat_template": text}) if template.endswith("json") else text
    (copy / template).write_text(whole)
    found = load_processor("tiny", copy)
    assert found.apply_chat_template([{"role": "user", "content": "what ?"}], tokenize=False) == "<user>"


def test_a_tokenizer_of_one_file(copy: Path, hub_folder: Path) -> None:
    whole = load_processor("tiny", hub_folder).tokenizer("what colour is the shape ?")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in config.items() if name.endswith("_token")}
    (copy / "tokenizer_config.json").write_text(json.dumps(kept))
    assert load_processor("tiny", copy).tokenizer("what colour is the shape ?") == whole


def test_a_broken_processor(copy: Path) -> None:
    (copy / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^the processor of tiny cannot be loaded: \S"):
        load_processor("tiny", copy)


def test_a_missing_package(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wants_more(*args: Any, **kwargs: Any) -> None:
        raise ImportError("\nneeds the package phonemizer")

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", wants_more)
    with pytest.raises(
        ValueError, match="the processor of tiny cannot be loaded: needs the package phonemizer"
    ):
        load_processor("tiny", hub_folder)


def test_a_tokenizer_alone_is_no_processor(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_processor("tiny", hub_folder).tokenizer
    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", lambda *_, **__: tokenizer)
    with pytest.raises(ValueError, match=r"its files make a \w+ alone, expected one for text and images"):
        load_processor("tiny", hub_folder)
