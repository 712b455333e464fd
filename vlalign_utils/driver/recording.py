"""Record one forward of a vision-language model and run its decoder again, whole or from any layer.

A replay calls the same model on the same inputs, with two kinds of modules that return their recorded
outputs instead of computing: everything that ran before layer 0 (vision tower, connector, embeddings)
and the layers below `start`. What lies between, and the head, is the model's own code.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vlalign_utils.driver.anatomy import Anatomy
from vlalign_utils.driver.attention_masks import Cuts
from vlalign_utils.driver.edits import CrossOff, Edit, FreezeTokens, Knockout, Patch, Revert
from vlalign_utils.driver.kv_cache import KVCache
from vlalign_utils.driver.residual_stream import (
    ModuleOutput,
    ResidualStream,
    replace_forward,
    return_recorded,
)

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a layer, the residual stream among them
States = dict[str, dict[Any, Any]]  # contents of the mutable mappings that a layer was given


@dataclass(frozen=True, eq=False)
class Run:
    """One recorded forward, made by `vlm.record`.

    `resid[k]` [batch, tokens, width] enters layer k; `resid[n_layers]` leaves the last layer, before
    the final norm. A run recorded with `stop=k` ends at `resid[k]` and has no logits.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
        >>> run = vlm.record(**inputs)
        >>> run.grid  # batch, tokens
        (1, 43)
        >>> len(run.resid), tuple(run.resid[0].shape), tuple(run.logits.shape)
        (9, (1, 43, 96), (1, 43, 215))
    """

    inputs: Mapping[str, Any]
    resid: list[Tensor]
    final: Float[Tensor, "batch tokens vocabulary"] | None
    outputs: dict[int, Any]  # what each executed layer returned
    states: dict[int, States]
    module_outputs: dict[str, list[ModuleOutput]]  # what each module returned before layer 0, by module name
    calls: dict[int, Call]  # what each executed layer was given
    root: nn.Module  # the model that was recorded
    versions: list[int]  # of the residual streams: how often each was changed in place
    kv_cache: KVCache | None = None  # what its attention made, where asked for

    @property
    def logits(self) -> Float[Tensor, "batch tokens vocabulary"]:
        """Next-token logits. Raises ValueError for a run that stopped early."""
        if self.final is None:
            raise ValueError(
                f"this run stopped at layer {len(self.resid) - 1} and has no logits: record it without stop"
            )
        return self.final

    @property
    def grid(self) -> tuple[int, int]:
        """Batch size and number of tokens: the shape of every mask."""
        return token_grid(self.resid[0], self.inputs)


@dataclass(frozen=True, eq=False)
class Replay:
    """One replayed forward, made by `vlm.replay`: logits, residual streams, layers where attention was cut.

    `logits` [batch, tokens, vocabulary] are next-token logits; `resid[k]` [batch, tokens, width] enters layer
    k, after the edits there; `hit` names the layers where a Knockout or CrossOff took effect.

    Example:
        >>> from PIL import Image
        >>> from vlalign_utils import load_vlm
        >>> vlm = load_vlm("zoo/llava")
        >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
        >>> run = vlm.record(**inputs)
        >>> replay = vlm.replay(run, start=4)
        >>> bool((replay.logits == run.logits).all()), len(replay.resid), replay.hit
        (True, 9, ())
    """

    logits: Float[Tensor, "batch tokens vocabulary"]
    resid: list[Tensor]
    hit: tuple[int, ...]


def token_grid(stream: Tensor, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Batch size and number of tokens of a residual stream."""
    # Some stacks carry several streams side by side: there the token ids give the shape.
    batch, tokens = (stream if stream.ndim == 3 else inputs["input_ids"]).shape[:2]
    return batch, tokens


def record(
    anatomy: Anatomy, inputs: Mapping[str, Any], stop: int | None = None, kv_cache: KVCache | None = None
) -> Run:
    """Run the model once without gradients, up to layer `stop`, and keep what a replay needs.

    `kv_cache`, empty, is filled with the keys and values of all self-attentions.
    """
    recorder, residual = _Recorder(), ResidualStream(anatomy, stop=stop)
    # Tensors made in inference mode could never take part in a later training step.
    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
        recorder.hook(anatomy, hooks)
        if kv_cache is not None:
            kv_cache.hook(anatomy.layers, hooks)
        final = residual(inputs, hooks)
    module_outputs = recorder.kept_outputs()
    return Run(
        inputs=inputs,
        resid=residual.resid,
        final=final,
        outputs=recorder.outputs,
        states=recorder.states,
        module_outputs=module_outputs,
        calls=recorder.calls,
        root=anatomy.root,
        versions=[stream._version for stream in residual.resid],
        kv_cache=kv_cache,
    )


def replay(
    anatomy: Anatomy, run: Run, start: int = 0, hidden: Tensor | None = None, edits: Sequence[Edit] = ()
) -> Replay:
    """Run the decoder again from layer `start`, on `hidden` if given, under the caller's gradient mode."""
    at_slots = [e.begin(run.grid) for e in edits if isinstance(e, Patch | FreezeTokens)]
    if hidden is not None:
        at_slots.insert(0, lambda slot, stream: hidden if slot == start else stream)
    residual = ResidualStream(anatomy, run.resid[:start], at_slots)
    cuts = Cuts([e for e in edits if isinstance(e, Knockout | CrossOff)], residual)
    with ExitStack() as hooks:
        cuts.hook(hooks)
        _swap_weights(anatomy, edits, hooks)
        for name, calls in run.module_outputs.items():
            module = anatomy.root.get_submodule(name)
            if not any(m in cuts.live for m in module.modules()):
                return_recorded(calls, module, hooks)
        for k in range(start):
            if k in run.outputs:
                return_recorded([pytree.tree_flatten(run.outputs[k])], anatomy.layers[k], hooks)
        first = next((k for k in sorted(run.states) if k >= start), None)
        if first is not None:  # layers above find the states that the running ones leave
            restore = partial(_restore, run.states[first])
            hooks.callback(anatomy.layers[first].register_forward_pre_hook(restore, with_kwargs=True).remove)
        final = residual(run.inputs, hooks)
    cuts.check()
    assert final is not None
    return Replay(final, residual.resid, tuple(sorted(cuts.hit)))


def forward(anatomy: Anatomy, inputs: Mapping[str, Any], edits: Sequence[Edit] = ()) -> Replay:
    """Run the whole model with edits, vision tower included: the oracle of what reuses recorded work."""
    shaped = [e for e in edits if isinstance(e, Patch | FreezeTokens)]
    residual = ResidualStream(anatomy, edits=[e.begin((e.mask.shape[0], e.mask.shape[1])) for e in shaped])
    cuts = Cuts([e for e in edits if isinstance(e, Knockout | CrossOff)], residual)
    with ExitStack() as hooks, torch.no_grad():
        cuts.hook(hooks)
        _swap_weights(anatomy, edits, hooks)
        final = residual(inputs, hooks)
    cuts.check()
    assert final is not None
    return Replay(final, residual.resid, tuple(sorted(cuts.hit)))


def _swap_weights(anatomy: Anatomy, edits: Sequence[Edit], hooks: ExitStack) -> None:
    for edit in edits:
        if isinstance(edit, Revert):
            for k in range(edit.first, edit.last + 1):
                replace_forward(anatomy.layers[k], edit.layers[k].__call__, hooks)


def entering_layer_0(anatomy: Anatomy, inputs: Mapping[str, Any]) -> Tensor:
    """Residual stream that enters layer 0 when no cross-attention has added to it before."""
    residual = ResidualStream(anatomy, stop=0)
    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
        Cuts([CrossOff(0, 0)], residual).hook(hooks)
        residual(inputs, hooks)
    return residual.resid[0]


@dataclass
class _Recorder:
    """Hooks that keep outputs before layer 0, outputs of layers, and the states that layers share."""

    outputs: dict[int, Any] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    states: dict[int, States] = field(default_factory=dict)
    module_outputs: dict[str, list[ModuleOutput]] = field(default_factory=dict)
    versions: list[tuple[str, Tensor, int]] = field(default_factory=list)
    depth: int = 0

    def hook(self, anatomy: Anatomy, hooks: ExitStack) -> None:
        for k, layer in enumerate(anatomy.layers):
            pre_hook = partial(self._layer_called, k)
            hooks.callback(layer.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(partial(self._layer_returned, k)).remove)
        for name, module in anatomy.outside():
            hooks.callback(module.register_forward_pre_hook(self._called).remove)
            hooks.callback(module.register_forward_hook(partial(self._returned, name)).remove)

    def kept_outputs(self) -> dict[str, list[ModuleOutput]]:
        """Outputs that nothing changed in place afterwards; the others are computed again in a replay."""
        changed = {name for name, tensor, version in self.versions if tensor._version != version}
        return {name: calls for name, calls in self.module_outputs.items() if name not in changed}

    def _layer_called(self, k: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if k in self.states:
            raise RuntimeError(f"layer {k} runs more than once in a forward: it cannot be resumed")
        self.calls[k] = args, kwargs
        self.states[k] = {name: dict(v) for name, v in kwargs.items() if isinstance(v, MutableMapping)}

    def _layer_returned(self, k: int, layer: nn.Module, args: Any, output: Any) -> None:
        self.outputs[k] = output

    def _called(self, module: nn.Module, args: Any) -> None:
        self.depth += 1

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.depth -= 1
        if self.depth or self.states:  # inside another module, or after layer 0 was entered
            return
        leaves, spec = pytree.tree_flatten(output)
        self.module_outputs.setdefault(name, []).append((leaves, spec))
        self.versions += [(name, leaf, leaf._version) for leaf in leaves if isinstance(leaf, Tensor)]


def _restore(states: States, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    for name, content in states.items():
        kwargs[name].update(content)
