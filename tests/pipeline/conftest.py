"""A project with one notebook and one chain, and the chain's entry in the registry."""

import nbformat
import pytest
from small_notebooks import notebook

from vlalign_utils.pipeline.registry import Architecture


@pytest.fixture
def project(tmp_path):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook(), tmp_path / "notebooks" / "01_a.ipynb")
    for stage in ("base", "tuned"):
        (tmp_path / "zoo" / "llava" / stage).mkdir(parents=True)
        (tmp_path / "zoo" / "llava" / stage / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def llava():
    return Architecture(
        name="llava",
        title="T",
        description="D",
        model="zoo/llava",
        stages=["base", "tuned"],
        notebooks=["01_a"],
    )
