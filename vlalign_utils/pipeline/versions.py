"""Versions of the installed packages on which a notebook's numbers rest."""

import ast
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

# Not imported by name, but each decides numbers: an image's pixels, a text's tokens, a weight, a sum.
BEHIND = {
    "transformers": ("pillow", "safetensors", "tokenizers", "torchvision"),
    "scikit-learn": ("numpy", "scipy"),
    "torch": ("numpy",),
}
QUANTISED = {"bitsandbytes"}  # decides nothing of a model that is not quantised, and none of the registry is
ABSENT = "absent"


def versions(code: str, files: Iterable[Path]) -> dict[str, str]:
    """Version of every package that a notebook's code or one of the files imports, and of those behind them.

    Keys are distributions' names, sorted. A build tag, as in `2.13.0+cpu`, is left out: it says for which
    machine a package was built. What is not installed is "absent".
    """
    names = set(_imported(code)).union(*map(_imported_by, files))
    found = {distribution for name in names for distribution in _distributions(name)}
    found |= {behind for name in found for behind in BEHIND.get(name, ())}
    found -= QUANTISED
    return {name: _version(name) for name in sorted(found)}


def _version(distribution: str) -> str:
    try:
        return version(distribution).partition("+")[0]
    except PackageNotFoundError:
        return ABSENT


@cache
def _imported_by(path: Path) -> frozenset[str]:
    return _imported(path.read_text(encoding="utf-8"))


def _imported(code: str) -> frozenset[str]:
    """Top-level names that the import statements anywhere in the code name, but for Python's own."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    own = {*sys.stdlib_module_names, __name__.partition(".")[0]}
    return frozenset(name.partition(".")[0] for name in names) - own


@cache
def _distributions(name: str) -> tuple[str, ...]:
    """Distributions that bring a top-level name, in the spelling of requirements.lock."""
    brought = _by_name().get(name, [name])
    return tuple(sorted({one.lower().replace("_", "-") for one in brought}))


@cache
def _by_name() -> dict[str, list[str]]:
    return dict(packages_distributions())
