"""What captured states depend on, as plain JSON values: model, processor, data and the way of pooling."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.token_groups import GROUPS, Random

FORMAT = 2  # of the numbers in a store: raise it when pooling or groups change their meaning


def store_key(
    vlm: VLM,
    prompts: Sequence[str],
    images: Sequence[Image.Image | None],
    answers: Sequence[str] | None,
    groups: Mapping[str, Any],
    pooling: Mapping[str, str],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The key of a store of captured states: whatever changes a number in it changes the key.

    Raises ValueError for a group that is a function, whose code no key can hold.
    """
    return {
        "format": FORMAT,
        "model": model_identity(vlm),
        "processor": processor_identity(vlm.processor),
        "data": data_identity(vlm, prompts, images, answers),
        "items": len(prompts),
        "groups": {name: _group(name, group) for name, group in groups.items()},
        "pooling": dict(pooling),
        "dtype": str(dtype).removeprefix("torch."),
        "layers": vlm.n_layers + 1,
        "versions": {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers)},
    }


def model_identity(vlm: VLM) -> dict[str, Any]:
    """Where the model came from, if that is known, and what it is now: code, configuration and weights."""
    source = getattr(vlm, "source", None)
    if is_dataclass(source) and not isinstance(source, type):
        source = asdict(source)
    pinned = isinstance(source, Mapping) and any(source.get(name) for name in ("fingerprint", "revision"))
    config = vlm.model.config
    return {
        "source": None if source is None else _plain(source),
        "class": type(vlm.model).__name__,
        "config": _hash(config.to_json_string(use_diff=False)),
        "attention": str(getattr(config, "_attn_implementation", None)),
        "training": vlm.model.training,
        "weights": weights_identity(vlm.model, pinned),
        "state": _state(vlm.model),
    }


def _state(model: torch.nn.Module) -> str:
    """Hash of what else decides a forward: unsaved buffers, adapters, scalings, hooks, automatic precision.

    Of hooks and replaced forwards only the names count: what their code does cannot be part of a key.
    """
    saved = model.state_dict().keys()
    digest = hashlib.blake2b(digest_size=16)
    device = next(model.parameters()).device.type
    digest.update(repr((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))).encode())
    for name, module in model.named_modules():
        added = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        added += [vars(module)["forward"]] if "forward" in vars(module) else []
        digest.update(" ".join(sorted(filter(None, map(_foreign, added)))).encode())
        settings = {k: v for k, v in vars(module).items() if not k.startswith("_") or "adapter" in k}
        plain = {k: v for k, v in settings.items() if _is_plain(v)}
        digest.update(f"{name} {sorted(plain.items(), key=lambda item: item[0])!r}".encode())
    for name, buffer in model.named_buffers():
        if name not in saved and not buffer.is_meta:
            digest.update(name.encode())
            for part in _sums(buffer.detach()):
                digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _foreign(function: Any) -> str:
    """Name of a function that is not the libraries' own: those record outputs or move weights."""
    inner = getattr(function, "func", function)  # of a partial
    module = str(getattr(inner, "__module__", type(inner).__module__))
    own = module.split(".")[0] in ("transformers", "accelerate")
    return "" if own else f"{module}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"


def _is_plain(value: Any) -> bool:
    """Settings that print the same in every process: numbers, names, and lists or mappings of them."""
    if isinstance(value, Mapping):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)


def weights_identity(model: torch.nn.Module, pinned: bool = False) -> str:
    """Hash of every tensor's name, shape, dtype and sums of its bits along two axes.

    One changed value changes it, and so do two that trade places. One pass over the weights, on their
    device. Weights that are not in memory (offloaded to disk) count by name alone; they raise ValueError
    unless the files that they came from are `pinned`.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        if value.is_meta and not pinned:
            raise ValueError(
                f"weight {name} is not in memory, so a store cannot tell which model this is: load it with "
                "load_vlm, or leave store= out"
            )
        for part in () if value.is_meta else _sums(value.detach()):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sums(value: Tensor, width: int = 4096) -> list[Tensor]:
    raw = value.contiguous().view(-1).view(torch.uint8)  # bits, whatever the dtype
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = len(raw) // (8 * width) * 8 * width
    words = raw[:whole].view(torch.int64).view(-1, width)  # sums wrap around: nothing is lost
    rest = raw[whole:]
    return [words.sum(dim=0), words.sum(dim=1), rest] if whole else [rest]


def processor_identity(processor: Any) -> str:
    """Hash of a processor's settings, chat templates and vocabulary."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    templates = [getattr(p, "chat_template", None) for p in (processor, tokenizer)]
    return _hash(repr(processor), repr(templates), vocabulary)


def data_identity(
    vlm: VLM, prompts: Sequence[str], images: Sequence[Image.Image | None], answers: Sequence[str] | None
) -> str:
    """Hash of what the model is given for every item, prepared by itself, and of every answer, in order.

    What a processor makes of an image can depend on more than its pixels (transparency, mode, orientation):
    so the prepared tensors count. Costs one run of the processor.
    """
    digest = hashlib.blake2b(digest_size=16)
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        answer = None if answers is None else answers[i]
        inputs = vlm.prepare(
            [prompt], None if image is None else [image], None if answer is None else [answer]
        )
        digest.update(f"{answer!r} {inputs_identity(inputs)}".encode())
    return digest.hexdigest()


def inputs_identity(inputs: Mapping[str, Any]) -> str:
    """Hash of model inputs: every name, type, shape and bit, in any order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(inputs.items()):
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _group(name: str, group: Any) -> Any:
    if isinstance(group, Random):
        return {"random": asdict(group)}
    known = next((known for known, function in GROUPS.items() if function is group), None)
    if known is None:
        raise ValueError(
            f"group {name!r} is a function: a store cannot tell when its code changes, so leave store= out"
        )
    return known


def _plain(value: Any) -> Any:
    """JSON values as they are, anything else by its text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
