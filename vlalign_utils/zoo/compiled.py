"""Layers compiled while they are trained: half of a small model's time goes into its small operations."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def compiled(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Compile these layers, for any batch, while the block runs; nothing is done without a C++ compiler."""
    chosen = list(layers) if shutil.which("g++") else []
    for layer in chosen:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in chosen:
            layer._compiled_call_impl = None
        torch._dynamo.reset()
