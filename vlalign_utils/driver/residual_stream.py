"""Read, edit and stop the residual stream of one forward, and make modules return recorded outputs.

Slots count the places where the stream can be read or edited: slot k enters layer k, slot
n_layers leaves the last layer, before the final norm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vlalign_utils.driver.anatomy import Anatomy, signature

ModuleOutput = tuple[list[Any], pytree.TreeSpec]  # leaves of a module's output, and how to build it again


class StopForward(Exception):  # noqa: N818 - not an error: the forward has done its work
    """Ends a forward early."""


@dataclass
class ResidualStream:
    """Residual stream of one forward, read, edited and stopped; `resid` holds the slots reached so far."""

    anatomy: Anatomy
    resid: list[Tensor] = field(default_factory=list)
    edits: Sequence[Callable[[int, Tensor], Tensor]] = ()
    stop: int | None = None

    def __call__(self, inputs: Mapping[str, Any], hooks: ExitStack) -> Tensor | None:
        """Call the model and return its logits, or None when it stopped early."""
        layers = self.anatomy.layers
        for k in range(len(self.resid), len(layers)):
            handle = layers[k].register_forward_pre_hook(partial(self._enter, k), with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.callback(layers[-1].register_forward_hook(self._leave).remove)
        try:
            output = self.anatomy.root(**inputs, use_cache=False)
        except StopForward:
            return None
        if len(self.resid) <= len(layers):
            raise RuntimeError(f"the model did not run its last layer, {len(layers) - 1}")
        return output.logits

    def _reach(self, slot: int, hidden: Tensor) -> Tensor:
        # A model may skip layers (cross-attention without an image): their slots hold the same stream.
        while len(self.resid) <= slot:
            for edit in self.edits:
                hidden = edit(len(self.resid), hidden)
            self.resid.append(hidden)
            if len(self.resid) - 1 == self.stop:
                raise StopForward
        return hidden

    def _enter(self, k: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entering = args[0] if args else kwargs[_first_parameter(layer)]
        return with_stream(layer, args, kwargs, self._reach(k, entering))

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> Any:
        n_layers = len(self.anatomy.layers)
        if isinstance(output, Tensor):
            return self._reach(n_layers, output)
        return (self._reach(n_layers, output[0]), *output[1:])


def with_stream(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the residual stream among a layer's arguments."""
    if args:
        return (stream, *args[1:]), kwargs
    return args, {**kwargs, _first_parameter(layer): stream}


def _first_parameter(layer: nn.Module) -> str:
    return next(iter(signature(layer).parameters))


def return_recorded(calls: Sequence[ModuleOutput], module: nn.Module, hooks: ExitStack) -> None:
    """Make a module's next calls return recorded outputs; it computes again when they are used up."""
    replace_forward(module, partial(_recorded, iter(calls), module.forward), hooks)


def replace_forward(module: nn.Module, forward: Callable[..., Any], hooks: ExitStack) -> None:
    """Replace a module's forward until `hooks` is closed; its own hooks stay in place."""
    own = module.forward
    # accelerate, for one, keeps a forward of its own on the module
    undo = partial(setattr, module, "forward", own) if "forward" in vars(module) else None
    hooks.callback(undo or partial(delattr, module, "forward"))
    module.forward = forward


def _recorded(left: Iterator[ModuleOutput], own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    output = next(left, None)
    return own(*args, **kwargs) if output is None else pytree.tree_unflatten(*output)
