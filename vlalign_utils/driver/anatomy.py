"""Find the parts of a vision-language model that the driver needs, from structure and never by family."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

# Stacks of as many layers as the decoder may sit inside it and belong to something that is not text.
_NOT_TEXT = re.compile(r"vision|visual|image|vit|video|audio|speech|former|resampler|projector|connector")
# The argument through which a transformers module receives keys from outside its own sequence.
_CACHES = ("past_key_values", "past_key_value", "layer_past")
_KEY_SOURCES = ("key_value_states", "encoder_hidden_states", "cross_attention_states")


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Decoder layers of a model and the dotted name they have in it."""

    root: nn.Module
    layers: nn.ModuleList
    name: str

    def ancestors(self) -> list[nn.Module]:
        """Modules that contain the decoder layers, from the whole model to the stack that owns them."""
        parts = self.name.split(".")[:-1]
        return [self.root.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]

    def outside(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module that neither contains the decoder layers nor lies within them."""
        containers = set(self.ancestors())
        for name, module in self.root.named_modules():
            if module not in containers and not f"{name}.".startswith(f"{self.name}."):
                yield name, module

    def cross_attentions(self) -> dict[nn.Module, int | None]:
        """Modules that can take keys from another sequence, such as an image, and the layer that holds each.

        None for those that stand between the layers.
        """
        layer_of = {inner: k for k, layer in enumerate(self.layers) for inner in layer.modules()}
        stack = self.ancestors()[-1]
        # A layer may merely pass the other sequence on, or ignore it; so may any module with one inside.
        able = [m for m in stack.modules() if key_source(m) and m is not stack and m not in set(self.layers)]
        innermost = [m for m in able if not any(key_source(inner) for inner in m.modules() if inner is not m)]
        return {m: layer_of.get(m) for m in innermost}

    def input_names(self) -> set[str]:
        """Keyword arguments that a forward understands, wherever on the way to the layers it is read."""
        names: set[str] = set()
        above = self.ancestors()
        for module in above:
            for parameter in signature(module).parameters.values():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    # What it does not name itself it may hand to a model beside the layers: an encoder.
                    beside = [m for m in module.children() if hasattr(m, "config") and m not in above]
                    names.update(name for m in beside for name in signature(m).parameters)
                    for typed in getattr(parameter.annotation, "__args__", ()):  # Unpack[SomeKwargs]
                        names.update(getattr(typed, "__annotations__", {}))
                else:
                    names.add(parameter.name)
        return names - {"use_cache", "past_key_values", "return_dict", "args"}


def signature(module: nn.Module) -> inspect.Signature:
    """Signature of the forward that a module's class defines."""
    return _without_self(type(module).forward)


@cache
def _without_self(forward: Callable[..., Any]) -> inspect.Signature:
    whole = inspect.signature(forward)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def find_anatomy(model: nn.Module) -> Anatomy:
    """Locate the decoder layers of a transformers model; needs no weights.

    Raises ValueError when no ModuleList, or more than one, has the length that the text
    configuration gives.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    # An encoder-decoder counts both: num_hidden_layers may be the encoder's.
    counts = [
        getattr(text, name, None) for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
    ]
    n_layers = next((count for count in counts if isinstance(count, int)), 0)
    whole: Any = model
    decoder = whole.get_decoder() if hasattr(model, "get_decoder") else model
    found = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not _NOT_TEXT.search(name)
    }
    # Experts and the like can be as many as the layers that hold them.
    found = {name: found[name] for name in found if not any(name.startswith(f"{other}.") for other in found)}
    if len(found) > 1:
        found = {name: found[name] for name in found if "encoder" not in name}
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one list of {n_layers} decoder layers inside "
            f"{type(decoder).__name__}, found {sorted(found) or 'none'}"
        )
    (layers,) = found.values()
    name = next(name for name, module in model.named_modules() if module is layers)
    return Anatomy(model, layers, name)


def self_attentions(layer: nn.Module) -> list[nn.Module]:
    """Attention modules of one decoder layer that can take a mask over the layer's own tokens."""
    return [m for m in layer.modules() if _attends(m) and mask_argument(m) is not None]


def _attends(module: nn.Module) -> bool:
    # Convolutions and state spaces take a mask too; older attention does not say whether it is causal.
    parts = dict(module.named_children())
    projects = all(any(name in parts for name in names) for names in (("q_proj", "query"), ("k_proj", "key")))
    mixes = any("conv" in type(part).__name__.lower() for part in parts.values())
    return hasattr(module, "is_causal") or (projects and not mixes)


def is_causal(attention: nn.Module, asked: Any) -> bool:
    """True where an attention module that is given no mask hides later tokens, unless its caller `asked`."""
    return bool(getattr(attention, "is_causal", False) if asked is None else asked)


def mask_argument(attention: nn.Module) -> str | None:
    """Name of the attention-mask argument of a module's forward, None when it has none."""
    names = [n for n in signature(attention).parameters if "mask" in n and "head" not in n]
    return "attention_mask" if "attention_mask" in names else next(iter(names), None)


def cache_argument(attention: nn.Module) -> str | None:
    """Name of the forward argument that brings a cache of earlier keys and values, None without one."""
    parameters = signature(attention).parameters
    return next((name for name in _CACHES if name in parameters), None)


def key_source(module: nn.Module) -> str | None:
    """Name of the forward argument that brings keys from another sequence, None when it has none."""
    parameters = signature(module).parameters
    return next((name for name in _KEY_SOURCES if name in parameters), None)


def image_token_ids(config: Any) -> set[int]:
    """Token ids that the configuration declares as placeholders of image features."""
    for names in (("image_token_id", "image_token_index"), ("video_token_id", "video_token_index")):
        declared = {getattr(config, name, None) for name in names}
        found = {token for token in declared if isinstance(token, int)}
        if found:
            return found  # some models of videos declare no other token for single images
    return set()
