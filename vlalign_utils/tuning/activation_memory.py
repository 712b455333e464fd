"""Memory of one training step of a decoder, measured on tensors without storage."""

import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.interventions.submodule_removal import submodules
from vlalign_utils.tuning.strategies import Strategy, trained


@dataclass(frozen=True)
class Footprint:
    """Bytes of one forward and backward through decoder, head and loss, weights not counted.

    `kept` is alive between forward and backward; `peak` is the most that was alive at any time, gradients
    made so far included, or without any gradient where those were there before (`accumulate`).
    """

    kept: int
    peak: int
    unreached: int  # bytes of gradients of trained weights outside the decoder
    entering: int  # numbers per batch that enter the lowest trained layer
    trained: tuple[int, ...]  # numbers of every trained tensor, LoRA's among them


class _Live(TorchDispatchMode):
    """Counts the bytes of every storage that is made while it is on, until it is freed."""

    def __init__(self, before: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._before = [tensor.untyped_storage() for tensor in before]  # alive, so that no id is used again
        self._known = {storage._cdata: storage for storage in self._before}
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return output

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known and key not in self._seen:
            self._seen[key] = weakref.ref(storage, partial(self._freed, key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int, _: weakref.ref) -> None:
        self._seen.pop(key)
        self.now -= size


def without_storage(vlm: VLM, strategy: Strategy) -> tuple[FakeTensorMode, list[nn.Parameter]]:
    """Give a model on the meta device weights that can be computed with, and return those that are trained.

    These are float32 whatever the model's precision is, and LoRA adds its matrices to every linear module of
    a layer, or of one part of it. Raises ValueError as `trained` does, and as `submodules` for a part.
    """
    chosen = {id(p) for p in trained(vlm, strategy)}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}
    with mode:
        for module in list(vlm.model.modules()):
            for name, p in list(module.named_parameters(recurse=False)):
                if id(p) not in made:
                    dtype = torch.float32 if id(p) in chosen else p.dtype
                    made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=dtype), id(p) in chosen)
                setattr(module, name, made[id(p)])
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        extra = [p for k in strategy.layers for p in _adapt(vlm.layers[k], strategy)]
    return mode, [*(p for p in vlm.model.parameters() if p.requires_grad), *extra]


def _adapt(layer: nn.Module, strategy: Strategy) -> list[nn.Parameter]:
    matrices: list[nn.Parameter] = []
    rank = strategy.rank
    parts = submodules(layer)[strategy.part] if strategy.part else [layer]
    for linear in [m for of in parts for m in of.modules() if isinstance(m, nn.Linear)] if rank else ():
        down = nn.Parameter(torch.empty(rank, linear.in_features, dtype=torch.float32))
        up = nn.Parameter(torch.empty(linear.out_features, rank, dtype=torch.float32))
        linear.register_forward_hook(partial(_add, down, up))
        matrices += [down, up]
    return matrices


def _add(down: Tensor, up: Tensor, linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # As in peft: the input becomes float32 and autocast rounds it again, a copy for every module.
    return (output + 2 * F.linear(F.linear(args[0].to(down.dtype), down), up)).to(output.dtype)


def footprint(
    vlm: VLM,
    strategy: Strategy,
    batch: int,
    tokens: int,
    answers: int,
    checkpointing: bool,
    accumulate: bool,
) -> Footprint:
    """Run one step of the decoder and add up what is alive; the model, on the meta device, is used up.

    Matrices are multiplied in the model's precision under autocast. Loss: cross-entropy in float32 of the
    last `answers` tokens. Raises ValueError for a decoder that cannot run without an image.
    """
    model, name = vlm.model, type(vlm.model).__name__
    if vlm.anatomy.cross_attentions():
        raise ValueError(
            f"{name}: no plan for a decoder with cross-attention, it does not run without an image"
        )
    precision = next(vlm.layers[0].parameters()).dtype
    mode, parameters = without_storage(vlm, strategy)
    model.train(checkpointing)
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is not in every transformers
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()  # it would send gradients below the lowest trained layer
    entering: list[int] = []
    with ExitStack() as hooks, mode:
        embedding, first = model.get_input_embeddings(), vlm.layers[strategy.start or 0]
        if strategy.connector and not strategy.language:  # image tokens bring a gradient, words do not
            hooks.callback(embedding.register_forward_hook(_with_gradient).remove)
        note = partial(_note, entering)
        hooks.callback(first.register_forward_pre_hook(note, with_kwargs=True).remove)
        ids = torch.zeros(batch, tokens, dtype=torch.long)
        mask, target = torch.ones_like(ids), torch.zeros(batch * answers, dtype=torch.long)
        known = [*model.parameters(), *model.buffers(), *parameters, ids, mask, target]
        if accumulate:
            for p in parameters:
                p.grad = torch.zeros_like(p)
            known += [p.grad for p in parameters if p.grad is not None]
        live = hooks.enter_context(_Live(known))
        half = precision in (torch.bfloat16, torch.float16)
        try:
            with torch.autocast("cpu", precision, enabled=half):
                loss = _loss(vlm, ids, mask, target, answers)
            kept = live.now
            loss.backward()
        # transformers, and ops whose result depends on values, refuse in many ways
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            raise ValueError(f"{name}: no plan, its decoder does not run on shapes alone: {reason}") from None
    unreached = 0 if accumulate else sum(4 * p.numel() for p in parameters if p.grad is None)
    return Footprint(kept, live.peak, unreached, entering[0], tuple(p.numel() for p in parameters))


def _loss(vlm: VLM, ids: Tensor, mask: Tensor, target: Tensor, answers: int) -> Tensor:
    stack, embedding = vlm.anatomy.ancestors()[-1], vlm.model.get_input_embeddings()
    inside = embedding in set(stack.modules())
    inputs = {"input_ids": ids} if inside else {"inputs_embeds": embedding(ids)}
    hidden = stack(**inputs, attention_mask=mask, use_cache=False)[0]
    logits = vlm.model.get_output_embeddings()(hidden)
    return F.cross_entropy(logits[:, -answers:].flatten(0, 1).float(), target)


def _with_gradient(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.detach().requires_grad_()


def _note(sizes: list[int], layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    stream = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
    sizes.append(stream.numel())
