"""Recorded prefixes: what enters a band of layers, stored once per batch and read again in every epoch.

With nothing trained below layer `start`, everything that reaches it is the same in every epoch. It is kept
in one shard per batch (`shards`), read through a memory map, and a replay from there gives the gradients of
the ordinary forward. Of what ran below, only the tensors that the rest needs are kept (`needed_tensors`).
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vlalign_utils.driver.edits import check_layer
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.fingerprints import model_identity, weights_identity
from vlalign_utils.inference.shards import Shards, StoreError, digest
from vlalign_utils.tuning.needed_tensors import needed, specs, unasked
from vlalign_utils.tuning.prefix_files import deserialise, serialise
from vlalign_utils.tuning.trainable import trainable

Inputs = Mapping[str, Any]


class Prefixes:
    """Recorded inputs of layer `start` for batches that stay the same; `run(i)` is what `replay` takes."""

    def __init__(
        self, vlm: VLM, batches: Sequence[Inputs], start: int, folder: Path, limit: int | None = None
    ) -> None:
        """Try the first batch. Files are kept in a subfolder of `folder`, named by model, batches and start.

        With `limit` (bytes) the batches that do not fit are run through the model each time instead. Raises
        ValueError, with the reason, for a model or batches that cannot be recorded, and StoreError when the
        disk is too full.
        """
        if not batches:
            raise ValueError("there are no batches to record")
        check_layer(start, "start", 0, vlm.n_layers)
        self.vlm, self.batches, self.start, self.limit = vlm, batches, start, limit
        self._stamps, self._identity = _stamps(self._below()), self._identified()
        first = self._tried()
        self.folder = folder / _key(vlm, batches, start)
        self._shards = Shards(self.folder)
        self._check_space(first)
        # What batch 0 gave, until it is asked for.
        self._opening: Run | None = None if self._shards.path(_name(0)).is_file() else first

    def run(self, i: int) -> Run:
        """Recorded prefix of batch `i`, to replay from `start`: read, or recorded now and kept if it fits.

        Raises ValueError when weights below `start` have changed since.
        """
        self._check_unchanged()
        stored = self._shards.read(_name(i), str(self.vlm.device))
        if stored is not None:
            return deserialise(self.vlm, self.batches[i], self.start, self._specs, *stored)
        run = self._opening if i == 0 and self._opening is not None else self._record(i)
        kept, plan = self._split(run)
        room = None if self.limit is None else self.limit - self.size
        if room is None or _bytes(kept) <= room:
            self._shards.write(_name(i), kept, plan, room)
        if i == 0:
            self._opening = None
        return run

    @property
    def size(self) -> int:
        """Bytes of the files that are there."""
        return self._shards.size

    def _below(self) -> list[nn.Parameter]:
        above = {id(p) for p in self.vlm.layers[self.start :].parameters()}
        return [p for p in self.vlm.model.parameters() if id(p) not in above]

    def _identified(self) -> str:
        return weights_identity(nn.ParameterList(self._below()), pinned=True)

    def _check_unchanged(self) -> None:
        stamps = _stamps(self._below())
        if stamps == self._stamps:
            return
        # Written to, but perhaps with the same values: so do processes that train together, at the start.
        if self._identified() != self._identity:
            raise ValueError(
                f"weights below layer {self.start} have changed since they were recorded: record them again"
            )
        self._stamps = stamps

    def _tried(self) -> Run:
        """Record the first batch up to `start`, and find the tensors to keep: they give the same logits."""
        # Even without gradients some kernels look at `requires_grad`, and give other last digits: no weight
        # asks for them here, as none below `start` does in training.
        with trainable(self.vlm.model, []):
            whole = self.vlm.record(**self.batches[0])
        logits = whole.logits
        if logits.isnan().any():
            raise ValueError("the model's logits are not numbers on the first batch: nothing can be recorded")
        first = self._checked_states(_up_to(whole, self.start))
        del whole
        self._specs, self._needed = specs(first), unasked(first, self.start)
        with trainable(self.vlm.model, []):
            # In most families a single replay shows that nothing else is read.
            if not self._rebuilt_gives(logits, first):
                if not torch.equal(self._replayed(first), logits):
                    raise self._not_repeatable()
                self._needed = needed(self.vlm, first, self.start, logits)
                if not self._rebuilt_gives(logits, first):
                    raise ValueError(
                        f"{type(self.vlm.model).__name__} reads more of what runs below layer {self.start} "
                        "than can be kept: train without recorded prefixes"
                    )
        # A model in eval mode is taken to draw nothing: a second record would cost as much as a step.
        if any(module.training for module in self.vlm.model.modules()):
            one, other = self._split(first)[0], self._split(self._record(0))[0]
            if not all(torch.equal(one[name], other[name]) for name in one):
                raise self._not_repeatable()
        return first

    @torch.no_grad()
    def _replayed(self, run: Run) -> Tensor:
        return self.vlm.replay(run, start=self.start).logits

    def _rebuilt_gives(self, logits: Tensor, first: Run) -> bool:
        kept, plan = self._split(first)
        run = deserialise(self.vlm, self.batches[0], self.start, self._specs, kept, plan, torch.nan)
        try:
            return torch.equal(self._replayed(run), logits)
        except (ValueError, RuntimeError, IndexError):  # NaN in a place that no number may have
            return False

    def _not_repeatable(self) -> ValueError:
        return ValueError(
            f"{type(self.vlm.model).__name__} does not give the same answer twice from layer {self.start} on "
            "(dropout? layers that depend on more than their input?): train without recorded prefixes"
        )

    def _record(self, i: int) -> Run:
        with trainable(self.vlm.model, []):
            return self._checked_states(self.vlm.record(stop=self.start, **self.batches[i]))

    def _checked_states(self, run: Run) -> Run:
        states = pytree.tree_leaves([list(by.values()) for by in run.states.values()])
        if any(isinstance(leaf, Tensor) for leaf in states):
            raise ValueError(
                f"{type(self.vlm.model).__name__}: layers below {self.start} hand keys and values to those "
                "above, which a recorded prefix does not hold: train without it"
            )
        return run

    def _split(self, run: Run) -> tuple[dict[str, Tensor], list[Any]]:
        if specs(run) != self._specs:
            raise ValueError(
                "what runs before the layers differs from batch to batch: train without recorded prefixes"
            )
        return serialise(run, self.start, self._needed)

    def _check_space(self, first: Run) -> None:
        whole = len(self.batches) * _bytes(self._split(first)[0])
        wanted = (whole if self.limit is None else min(whole, self.limit)) - self.size
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            raise StoreError(
                f"{self.folder} needs about {wanted / 1e9:.1f} GB for recorded prefixes, but "
                f"{free / 1e9:.1f} GB are free there: free some, record elsewhere, or give a limit"
            )


def _up_to(run: Run, start: int) -> Run:
    """Cut a whole record down to one that stops at layer `start`."""
    return replace(
        run,
        resid=run.resid[: start + 1],
        versions=run.versions[: start + 1],
        final=None,
        outputs={k: output for k, output in run.outputs.items() if k < start},
        states={k: states for k, states in run.states.items() if k <= start},
        calls={k: call for k, call in run.calls.items() if k <= start},
    )


def _stamps(parameters: Sequence[nn.Parameter]) -> list[tuple[int, int, int]]:
    """Which parameters these are, where, and how often each was written to."""
    return [(id(p), p.data_ptr(), p._version) for p in parameters]


def _name(i: int) -> str:
    return f"{i:06d}"


def _bytes(kept: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in kept.values())


def _key(vlm: VLM, batches: Sequence[Inputs], start: int) -> str:
    """Hash of all that decides what is recorded."""
    about = (model_identity(vlm), start, vlm.device.type, torch.__version__, transformers.__version__)
    return hashlib.blake2b(f"{about!r} {data_key(batches)}".encode(), digest_size=16).hexdigest()


def data_key(batches: Sequence[Inputs]) -> str:
    """Hash of batches in their order: names, values, types and shapes."""
    total = hashlib.blake2b(digest_size=16)
    for inputs in batches:
        leaves, spec = pytree.tree_flatten(dict(sorted(inputs.items())))
        tensors = {str(j): leaf for j, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        total.update(f"{spec} {others!r} {digest(tensors)}".encode())
    return total.hexdigest()
