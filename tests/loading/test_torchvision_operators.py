"""torchvision's operators: declared where its library does not load, left alone where it does."""

import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from vlalign_utils.loading import torchvision_operators
from vlalign_utils.loading.torchvision_operators import OPERATORS, declare_operators


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that are declared; none is really."""
    names: list[str] = []
    monkeypatch.setattr(torch.library, "define", lambda name, schema: names.append(name))
    return names


def test_the_python_transforms_work() -> None:
    picture = Image.linear_gradient("L").resize((48, 48))
    assert functional.pil_to_tensor(picture).shape == (1, 48, 48)
    assert all(hasattr(torch.ops.torchvision, name) for name in OPERATORS)


@pytest.mark.slow
def test_torch_calls_it_in_every_process() -> None:
    (entry,) = entry_points(group="torch.backends", name="vlalign")
    assert entry.load() is declare_operators
    # A process that never imports this package; without the operators this import fails.
    code = "from transformers import AutoProcessor; import peft, torchvision; print(AutoProcessor.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("AutoProcessor\n", 0), done.stderr


def test_what_is_declared_is_not_declared_again(defined: list[str]) -> None:
    declare_operators()
    assert defined == []


def test_a_library_that_loads_brings_its_own(defined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.ops.torchvision

    class Operators:
        """Empty until the library is loaded."""

        def load_library(self, path: str) -> None:
            self.torchvision = real

    class Broken:
        torchvision = object()

        def load_library(self, path: str) -> None:
            raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(torchvision_operators.torch, "ops", Operators())
    declare_operators()
    assert defined == []
    monkeypatch.setattr(torchvision_operators.torch, "ops", Broken())
    declare_operators()
    assert defined == ["torchvision::nms", "torchvision::qnms"]


def test_without_torchvision_nothing_is_declared(defined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_operators, "find_spec", lambda name: None)
    monkeypatch.setattr(torch, "ops", None)
    declare_operators()
    assert defined == []
    assert importlib.util.find_spec("torchvision") is not None
