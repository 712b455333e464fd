"""Versions of what decides a notebook's numbers: other versions, another hash."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import nbformat
import pytest

from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import input_hash, versions
from vlalign_utils.pipeline.registry import Architecture

CODE = "import os\nimport numpy as np\nfrom sklearn.base import clone\nfrom transformers import AutoModel"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, to be changed."""
    have = dict.fromkeys(("numpy", "pillow", "safetensors", "scikit-learn", "scipy", "tokenizers"), "1.0")
    have |= {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "transformers": "5.23.0"}

    def look_up(name: str) -> str:
        if name not in have:
            raise PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(versions, "version", look_up)
    return have


def test_the_packages_that_are_imported_and_those_behind_them(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "module.py").write_text(
        "def late():\n    from torch.nn import Module\n\nfrom . import other\n"
    )
    found = versions.versions(CODE, [tmp_path / "module.py"])
    assert found == {**dict.fromkeys(installed, "1.0"), **found}
    assert list(found) == sorted(installed)
    assert (found["torch"], found["torchvision"], found["transformers"]) == ("2.13.0", "0.28.0", "5.23.0")
    del installed["torchvision"]
    assert versions.versions(CODE, [])["torchvision"] == "absent"
    assert versions.versions("import numpy", []) == {"numpy": "1.0"}
    assert versions.versions("import vlalign_utils, json", []) == {}


def test_another_version_is_another_input(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)]),
        tmp_path / "notebooks" / "01_a.ipynb",
    )
    model = tmp_path / "zoo" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({}))
    arch = Architecture(name="tiny", title="T", description="d", model="zoo/tiny", notebooks=["01_a"])

    def hashed() -> str:
        return input_hash.input_hash("01_a", arch, {}, tmp_path)

    before = hashed()
    for name, value in (("torch", "2.13.0"), ("hypothesis", "6.0"), ("torchvision", "0.28.0")):
        installed[name] = value
        assert hashed() == before, name
    for name in ("transformers", "torchvision", "tokenizers", "scikit-learn", "scipy", "pillow"):
        held = installed.pop(name)
        assert hashed() != before, name
        installed[name] = "5.24.0"
        assert hashed() != before, name
        installed[name] = held
    assert hashed() == before


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_version_in_a_hash_is_pinned(path: Path) -> None:
    """So that what was committed is fresh on any machine that was set up from the lock."""
    notebook = nbformat.read(path, as_version=4)
    modules = [input_hash._source(module) for module in input_hash.closure(notebook)]
    found = versions.versions(input_hash.code(notebook), modules)
    pinned = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    torch = {"torch": (ROOT / "Makefile").read_text().split("TORCH := torch==")[1].split()[0]}
    assert found
    assert found.items() <= {**pinned, **torch}.items()
