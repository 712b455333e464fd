"""The processor that a checkpoint comes with, or what can be made of it where torchvision is missing."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available

from vlalign_utils.loading.composed_processor import ComposedProcessor

LOG = logging.getLogger("vlalign")


def load_processor(name: str, folder: Path, trust_remote_code: bool = False) -> Any:
    """Full processor, or tokenizer and image processor composed where it cannot be built without torchvision.

    Raises ValueError when neither can be loaded.
    """
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ImportError as error:
        if is_torchvision_available() or "torchvision" not in str(error).lower():
            raise ValueError(f"the processor of {name} cannot be built: {_first_line(error)}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"the processor of {name} cannot be loaded: {_first_line(error)}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        pictures = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"the processor of {name} needs torchvision, install it: without it {_first_line(error)}"
        ) from None
    LOG.info(
        "%s: without torchvision its processor is replaced by its tokenizer and %s, for text and images, "
        "each placeholder repeated for the features that the model returns",
        name,
        type(pictures).__name__,
    )
    return ComposedProcessor(tokenizer, pictures, _template(folder))


def _template(folder: Path) -> str | None:
    """Chat template of the processor, in the files where processors keep it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return str(json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"])
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
