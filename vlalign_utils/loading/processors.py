"""Load the processor that a checkpoint comes with."""

from pathlib import Path
from typing import Any

from transformers import AutoProcessor, ProcessorMixin


def load_processor(name: str, folder: Path, trust_remote_code: bool = False) -> Any:
    """Load the checkpoint's own processor from a folder, as `AutoProcessor` does; `name` is for messages.

    Raises ValueError when it cannot be loaded, or when the files only make a tokenizer or an image processor.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"the processor of {name} cannot be loaded: {_first_line(error)}") from None
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(
            f"the processor of {name} cannot be loaded: its files make a {type(processor).__name__} alone, "
            "expected one for text and images; pass processor="
        )
    return processor


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
