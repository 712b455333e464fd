"""Write the weights of a base language model into the decoder of a vision-language model.

Weights are matched by name: whatever stands before `layers.0...` in the base's own names is found from
the names themselves, so a language model and the text part of another vision-language model both do.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from vlalign_utils.driver.anatomy import find_anatomy
from vlalign_utils.loading.safetensors_headers import Header


@dataclass(frozen=True)
class Swap:
    """A weight, and the tensor of the base that replaces it or, where `rows` is given, its first rows."""

    target: str
    source: str
    file: str
    rows: int | None = None


@dataclass(frozen=True)
class Plan:
    """Swaps that make the decoder the base language model, and what stays the other model's own."""

    swaps: tuple[Swap, ...]
    kept: tuple[str, ...]


def plan(model: nn.Module, name: str, base: str, headers: Mapping[str, Header], tied: bool = False) -> Plan:
    """Match the weights of a base language model to the decoder of a model, which may be on the meta device.

    `tied` says that the base's head is its embedding, whatever else its files hold. Raises ValueError
    when layers, sizes or precisions do not match.
    """
    whole: Any = model
    own, pairs = _decoder_pairs(model, name, base, headers)
    vocabulary = [whole.get_input_embeddings()]
    own, pairs = _add_outside(model, vocabulary[0], own, pairs, headers)
    embedding = vocabulary[0].weight
    rows = next((source for target, source in pairs.items() if own[target] is embedding), None)
    if rows is None:
        raise ValueError(f"{base} holds no token embeddings under the name that {name} has for its own")
    head = whole.get_output_embeddings()
    if head is not None:
        vocabulary.append(head)
        with_head, head_pairs = _add_outside(model, head, own, pairs, {} if tied else headers)
        weight = f"{_name_of(model, head)}.weight"
        if head.weight is not embedding:
            own, pairs = with_head, {**pairs, weight: rows, **head_pairs}
        elif head_pairs.get(weight, rows) != rows:
            raise ValueError(f"{base} has a head of its own, that of {name} is its token embedding")
    by_rows = {id(p) for module in vocabulary for p in module.parameters()}
    swaps = [_swap(t, own[t], s, headers[s], id(own[t]) in by_rows, name, base) for t, s in pairs.items()]
    kept = [target for target in own if target not in pairs]
    kept += [f"{s.target}[{s.rows}:{own[s.target].shape[0]}]" for s in swaps if s.rows is not None]
    return Plan(tuple(swaps), tuple(kept))


def _decoder_pairs(
    model: nn.Module, name: str, base: str, headers: Mapping[str, Header]
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Parameters of the stack that owns the decoder layers, and the base's tensor for each that has one."""
    anatomy = find_anatomy(model)
    ours, _, layers = anatomy.name.rpartition(".")
    ours = f"{ours}." if ours else ""
    own = dict(anatomy.ancestors()[-1].named_parameters(remove_duplicate=False))
    theirs = _prefix(own, headers)
    buffers = {n.rpartition(".")[2] for n, _ in model.named_buffers()}  # old files may hold them
    strays = [
        header
        for header in headers
        if header.startswith(f"{theirs}{layers}.")
        and header.removeprefix(theirs) not in own
        and header.rpartition(".")[2] not in buffers
    ]
    absent = [n for n in own if n.startswith(f"{layers}.") and theirs + n not in headers]
    if strays or absent:
        what = f"only the base has {min(strays)}" if strays else f"the base lacks {min(absent)}"
        raise ValueError(
            f"the layers of {base} do not match the {len(anatomy.layers)} decoder layers of {name}: {what}; "
            "pass the base language model of this model with base="
        )
    pairs = {ours + n: theirs + n for n in own if theirs + n in headers}
    return {ours + n: p for n, p in own.items()}, pairs


def _add_outside(
    model: nn.Module,
    module: nn.Module,
    own: dict[str, nn.Parameter],
    pairs: dict[str, str],
    headers: Mapping[str, Header],
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Add a module that may stand outside the stack, such as the head, found by its own name."""
    name = _name_of(model, module)
    own, pairs = dict(own), dict(pairs)
    for parameter, weight in module.named_parameters():
        tail = f"{name.rpartition('.')[2]}.{parameter}"
        found = next((h for h in headers if h == tail or h.endswith(f".{tail}")), None)
        target = f"{name}.{parameter}"
        own[target] = weight
        if found is not None:
            pairs.setdefault(target, found)
    return own, pairs


def _prefix(own: Mapping[str, nn.Parameter], headers: Mapping[str, Header]) -> str:
    """Prefix of the base's names before those of the decoder: most names agree, and most shapes."""
    votes: Counter[str] = Counter()
    for name, header in headers.items():
        parts = name.split(".")
        for i in range(len(parts)):
            if (tail := ".".join(parts[i:])) in own:
                votes["".join(f"{part}." for part in parts[:i])] += (
                    2 if tuple(own[tail].shape) == header.shape else 1
                )
    return votes.most_common(1)[0][0] if votes else ""


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is module)


def _swap(
    target: str, weight: nn.Parameter, source: str, header: Header, by_rows: bool, name: str, base: str
) -> Swap:
    if not header.is_real:
        raise ValueError(
            f"{base}: {source} is quantised ({header.dtype}), pass a plain copy of it with base="
        )
    shape = tuple(weight.shape)
    fits = header.shape[1:] == shape[1:] and header.shape[0] <= shape[0] if by_rows else header.shape == shape
    if not fits:
        raise ValueError(
            f"{base}: {source} is {list(header.shape)}, {target} of {name} is {list(shape)}: "
            "it is not the base language model of this model, pass the right one with base="
        )
    return Swap(target, source, header.file, header.shape[0] if header.shape != shape else None)


@torch.no_grad()
def write_weights(model: nn.Module, swaps: Sequence[Swap], folder: Path) -> None:
    """Write the base's weights into a model, one tensor at a time.

    Raises ValueError when a weight of the model was offloaded.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    if offloaded := [swap.target for swap in swaps if weights[swap.target].is_meta]:
        raise ValueError(
            f"{offloaded[0]} was offloaded, so the base's weights cannot replace it: "
            "use a device_map that keeps the decoder in memory"
        )
    for file in sorted({swap.file for swap in swaps}):
        with safe_open(folder / file, framework="pt") as stream:
            for swap in swaps:
                if swap.file == file:
                    weights[swap.target].data[: swap.rows].copy_(stream.get_tensor(swap.source))
