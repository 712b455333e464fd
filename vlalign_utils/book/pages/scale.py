"""The models of the book, in words: their weights, layers and vocabulary, read from their own files."""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

from vlalign_utils.book.pages.card import read_record
from vlalign_utils.evidence.findings import counted, joined
from vlalign_utils.loading.checkpoint import locate
from vlalign_utils.loading.safetensors_headers import read_headers
from vlalign_utils.loading.stage_file import STAGE
from vlalign_utils.pipeline.registry import Architecture, Registry

DEPTHS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")  # an encoder-decoder has several
LARGE = 10**9  # weights; what is found in a smaller model need not hold from here on
TRAINED = "trained from scratch by this project"
JOINED = "pretrained parts that this project joined and tuned"


class Scale(NamedTuple):
    """Size of one model, and whether this project trained it from its first weight, or joined its parts."""

    weights: int
    layers: int
    tokens: int
    trained: bool = False
    joined: bool = False


def of(arch: Architecture, root: Path) -> Scale | None:
    """The scale of an architecture's last stage; None for a model that is on the hub and not in a folder.

    Raises ValueError naming a weights file that is missing or damaged.
    """
    folder = root / arch.model
    if not folder.is_dir():
        return None
    own = of_folder(folder, arch.stages[-1] if len(arch.stages) > 1 else None)
    record = read_record(folder / "record.json")
    return own._replace(trained=record is not None and set(arch.stages) <= set(record.stages))


def of_folder(folder: Path, stage: str | None = None) -> Scale:
    """The scale of a model in a folder, or of a stage there, whoever trained it.

    A stage that is kept as what was trained is counted by its configuration: pages need no pretrained part.
    Raises ValueError naming a weights file that is missing or damaged.
    """
    place = locate(folder, stage)
    assert place.folder is not None
    config = AutoConfig.from_pretrained(place.folder)
    text = config.get_text_config(decoder=True)
    made_of_parts = STAGE in place.files
    if made_of_parts:
        with torch.device("meta"):
            empty: Any = AutoModelForImageTextToText.from_config(config)
        weights = sum(parameter.numel() for parameter in empty.parameters())
    else:
        weights = sum(prod(header.shape) for header in read_headers(place).values())
    words = place.folder / "tokenizer.json"
    tokens = Tokenizer.from_file(str(words)).get_vocab_size() if words.is_file() else text.vocab_size
    layers = next(count for name in DEPTHS if isinstance(count := getattr(text, name, None), int))
    return Scale(weights, layers, tokens, joined=made_of_parts)


def about_one(arch: Architecture, root: Path) -> str:
    """A sentence on the model of one chapter."""
    scale = of(arch, root)
    if scale is None:
        return f"Measured on {arch.title}: {arch.model}, a model that this project did not train."
    trained = TRAINED if scale.trained else JOINED if scale.joined else f"not {TRAINED}"
    return f"Measured on {arch.title}: {_sizes([scale])}; {trained}."


def about_all(entries: Registry, root: Path) -> str:
    """Sentences on all models: how many, who trained them, and how large they are."""
    scales = {name: of(arch, root) for name, arch in entries.architectures.items()}
    known = [scale for scale in scales.values() if scale is not None]
    kinds = entries.originals()
    again = {name: [a for a in entries.architectures.values() if a.repeats == name] for name in kinds}
    seeds = [
        f"{entries.architecture(name).title} from {len(others) + 1} seeds"
        for name, others in again.items()
        if others
    ]
    models = counted(len(kinds), "model") + (f" ({joined(seeds)})" if seeds else "")
    ours = [name for name in kinds if (scale := scales[name]) is not None and scale.trained]
    if len(ours) == len(kinds):
        models += f", {TRAINED}"
    elif ours:
        models += f", {len(ours)} of them {TRAINED}"
    told = [f"Measured on {models}{': ' if known else ''}{_sizes(known) if known else ''}."]
    elsewhere = [entries.architecture(name).title for name, scale in scales.items() if scale is None]
    if elsewhere:
        told.append(f"The size of {joined(elsewhere)} is not on record here.")
    if known and max(scale.weights for scale in known) < LARGE:
        told.append(
            "What is found in models as small as these need not hold in models of billions of weights."
        )
    return " ".join(told)


def _sizes(scales: list[Scale]) -> str:
    weights = _range([_large(scale.weights) for scale in sorted(scales)])
    layers = _range([str(n) for n in sorted(scale.layers for scale in scales)])
    tokens = _range([f"{n:,}" for n in sorted(scale.tokens for scale in scales)])
    return f"{weights} weights, {layers} decoder layers, a vocabulary of {tokens} tokens"


def _range(sizes: list[str]) -> str:
    """The first and the last of ordered sizes, with a shared unit once."""
    first, last = sizes[0], sizes[-1]
    if first == last:
        return first
    number, _, unit = first.partition(" ")
    return f"{number if unit and last.endswith(f' {unit}') else first} to {last}"


def _large(number: int) -> str:
    for size, unit in ((LARGE, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
