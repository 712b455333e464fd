"""Attention implementation of a model, and its change for as long as an edit needs another."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakSet

from torch import nn

from vlalign_utils.driver.anatomy import self_attentions

LOG = logging.getLogger("vlalign")
_LOGGED: WeakSet[nn.Module] = WeakSet()  # models whose change was logged
MASKABLE = ("eager", "sdpa")  # they take any additive mask, query by key
FIT = {"masks": MASKABLE, "weights": ("eager",)}


def attention_in_use(layers: nn.ModuleList) -> set[str]:
    """Names of the implementations that the attention of these decoder layers uses, where it has a choice."""
    configs = [getattr(m, "config", None) for layer in layers for m in self_attentions(layer)]
    return {how for config in configs if (how := getattr(config, "_attn_implementation", None))}


@contextmanager
def attention_for(vlm: Any, need: Literal["masks", "weights", "any"] = "masks") -> Iterator[None]:
    """Run a VLM's decoder with an attention that can do what is needed; restore its own afterwards.

    `need="masks"` is for edits that forbid query-key pairs: a model with flash or flex attention runs with
    sdpa, or with eager where its class does not support sdpa, and the reason is logged once per model.
    `need="weights"` is for attention weights, which eager alone makes.
    Raises ValueError when the class cannot switch, or for another need.
    """
    if need not in (*FIT, "any"):
        raise ValueError(f"need={need!r}, expected {', '.join(FIT)} or any")
    fit = FIT.get(need, ())
    unfit = attention_in_use(vlm.layers) - set(fit)
    if need == "any" or not unfit:
        yield
        return
    model = vlm.model
    saved = _configs(model)
    try:
        chosen = _switch(vlm, sorted(unfit)[0], fit)
        if need == "masks" and model not in _LOGGED:
            _LOGGED.add(model)
            LOG.info(
                "%s: %s cannot take a mask over query-key pairs, edits that need one run with %s",
                type(model).__name__,
                ", ".join(sorted(unfit)),
                chosen,
            )
        yield
    finally:
        for config, how in saved:  # the root first: setting it sets those below it too
            config._attn_implementation = how


def _switch(vlm: Any, loaded: str, fit: Sequence[str]) -> str:
    for how in reversed(fit):
        try:
            vlm.model.set_attn_implementation(how)
        except (ValueError, ImportError):
            continue
        if attention_in_use(vlm.layers) <= set(fit):
            return how
    raise ValueError(
        f"{type(vlm.model).__name__} cannot leave {loaded} once it is loaded: "
        f'load it with load_vlm(..., attn_implementation="{fit[-1]}")'
    )


def _configs(model: nn.Module) -> list[tuple[Any, Any]]:
    """Every configuration in a model with the attention it names, outer ones before those they hold."""
    found: dict[int, Any] = {}
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    waiting = [config for config in configs if hasattr(config, "sub_configs")]
    while waiting:
        config = waiting.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            inner = [getattr(config, key, None) for key in config.sub_configs]
            waiting += [c for c in inner if c is not None]
    return [(config, config._attn_implementation) for config in found.values()]
