"""Declare the two operators that torchvision's Python code needs where its compiled part does not load.

PyPI's torchvision is built for CUDA. Beside a torch built for the CPU its library does not load, and every
import of it, and so of half of transformers and peft, ends in `operator torchvision::nms does not exist`.
Its transforms are plain Python on torch and need no compiled operator: with the two names declared, the
import passes and the processors of all models work. torch calls `declare_operators` whenever it is
imported (entry point `torch.backends` of pyproject.toml): any later moment would be too late for a
process that imports transformers before this package.
"""

from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

OPERATORS = ("nms", "qnms")  # those that torchvision registers whether or not its library has loaded
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_operators() -> None:
    """Declare torchvision's operators without an implementation; nothing where torchvision brings them."""
    package = find_spec("torchvision")
    if package is None:
        return
    library = PathFinder.find_spec("_C", package.submodule_search_locations)
    try:
        if library is not None and library.origin is not None:
            torch.ops.load_library(library.origin)
    except OSError:  # built for another torch: torchvision itself passes over this too
        pass
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SCHEMA)
