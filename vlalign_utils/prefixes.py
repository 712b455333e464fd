"""What the layers below a band give, recorded once per batch and read again in every epoch.

With nothing trained below layer `start`, everything that reaches it is the same in every epoch. It is kept
in one safetensors file per batch, memory-mapped when read, and a replay from there gives the gradients of the
ordinary forward. Of what ran below, only the tensors that the rest of the forward reads are kept (`reads`).
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vlalign_utils.identity import model_identity, weights_identity
from vlalign_utils.journal import StoreError
from vlalign_utils.models import VLM
from vlalign_utils.reads import answered_twice, leaves, needed, specs
from vlalign_utils.trace import Run
from vlalign_utils.walk import Answer

LOG = logging.getLogger("vlalign")
Inputs = Mapping[str, Any]


class Prefixes:
    """Recorded inputs of layer `start` for batches that stay the same; `runs(i)` is what `replay` takes."""

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
        self.vlm, self.batches, self.start, self.limit = vlm, batches, start, limit
        self._stamps, self._identity = _stamps(self._below()), self._identified()
        first = self._record(0)
        self._specs = specs(first)
        with _frozen(vlm.model):
            logits = answered_twice(vlm, first, start)
            self._needed = needed(vlm, first, start, logits)
            self._check_rebuilt(first, logits)
        self.folder = folder / _key(vlm, batches, start)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._checked: set[int] = set()
        self.size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        self._check_space(first)
        # What batch 0 gave, until it is asked for.
        self._opening: Run | None = None if self._path(0).is_file() else first

    def run(self, i: int) -> Run:
        """What layer `start` and the rest need of batch `i`: read, or recorded now, and kept if it fits.

        Raises ValueError when weights below `start` have changed since.
        """
        self._check_unchanged()
        path = self._path(i)
        stored = self._read(path, i) if path.is_file() else None
        if stored is not None:
            return stored
        run = self._opening if i == 0 and self._opening is not None else self._record(i)
        kept, plan = self._split(run)
        if self.limit is None or self.size + _bytes(kept) <= self.limit:
            data = save(kept, {"plan": plan, "crc32": str(_checksum(kept, plan))})
            if self.limit is None or self.size + len(data) <= self.limit:
                _write(path, data)
                self.size += len(data)
        if i == 0:
            self._opening = None
        return run

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:06d}.safetensors"

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

    def _record(self, i: int) -> Run:
        with _frozen(self.vlm.model):
            run = self.vlm.record(stop=self.start, **self.batches[i])
        states = pytree.tree_leaves([list(by.values()) for by in run.states.values()])
        if any(isinstance(leaf, Tensor) for leaf in states):
            raise ValueError(
                f"{type(self.vlm.model).__name__}: layers below {self.start} hand keys and values to those "
                "above, which a recorded prefix does not hold: train without it"
            )
        return run

    def _split(self, run: Run) -> tuple[dict[str, Tensor], str]:
        """Tensors to keep, and as JSON: the stream's shape, and for every leaf where it is or what it was."""
        if specs(run) != self._specs:
            raise ValueError(
                "what runs before the layers differs from batch to batch: train without recorded prefixes"
            )
        kept: dict[str, Tensor] = {}
        plan: list[Any] = [list(run.resid[self.start].shape)]
        for number, (slot, leaf) in enumerate(leaves(run)):
            if not isinstance(leaf, Tensor):
                if not isinstance(leaf, str | int | float | bool | None):
                    raise ValueError(
                        f"a {type(leaf).__name__} runs before layer {self.start}, which no file can hold: "
                        "train without recorded prefixes"
                    )
                plan.append(["value", leaf])
            elif slot in self._needed:
                # A copy: no file takes two tensors that share memory.
                kept[str(number)] = leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
                plan.append(["kept", str(number)])
            else:
                plan.append(["empty", list(leaf.shape), str(leaf.dtype).removeprefix("torch.")])
        return kept, json.dumps(plan)

    def _read(self, path: Path, i: int) -> Run | None:
        try:
            with safe_open(path, "pt", device=str(self.vlm.device)) as file:
                about = file.metadata()
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sound = i in self._checked or int(about["crc32"]) == _checksum(kept, about["plan"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            LOG.warning("%s is damaged: its batch is recorded again", path)
            self.size -= path.stat().st_size
            path.unlink()
            return None
        self._checked.add(i)
        return self._rebuilt(i, kept, about["plan"])

    def _rebuilt(self, i: int, kept: Mapping[str, Tensor], plan: str) -> Run:
        answers: dict[str, list[Answer]] = {}
        outputs: dict[int, Any] = {}
        shape, *entries = json.loads(plan)
        left = iter([_leaf(entry, kept, self.vlm.device) for entry in entries])
        for (name, number), spec in self._specs:
            own = [next(left) for _ in range(spec.num_leaves)]
            if name:
                answers.setdefault(name, []).append((own, spec))
            else:
                outputs[number] = pytree.tree_unflatten(own, spec)
        # Only its shape is looked at: the stream comes out of the last layer that did not run.
        stream = torch.empty((), dtype=self.vlm.model.dtype, device=self.vlm.device).expand(shape)
        return Run(
            inputs=self.vlm._on_device(self.batches[i]),
            resid=[stream] * (self.start + 1),
            final=None,
            outputs=outputs,
            states={},
            answers=answers,
            calls={},
            root=self.vlm.model,
            versions=[stream._version] * (self.start + 1),
        )

    @torch.no_grad()
    def _check_rebuilt(self, first: Run, logits: Tensor) -> None:
        kept, plan = self._split(first)
        rebuilt = self._rebuilt(0, {name: value.to(self.vlm.device) for name, value in kept.items()}, plan)
        if not torch.equal(self.vlm.replay(rebuilt, start=self.start).logits, logits):
            raise ValueError(
                f"{type(self.vlm.model).__name__} reads more of what runs below layer {self.start} than can "
                "be kept: train without recorded prefixes"
            )

    def _check_space(self, first: Run) -> None:
        whole = len(self.batches) * _bytes(self._split(first)[0])
        wanted = (whole if self.limit is None else min(whole, self.limit)) - self.size
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            raise StoreError(
                f"{self.folder} needs about {wanted / 1e9:.1f} GB for recorded prefixes, but "
                f"{free / 1e9:.1f} GB are free there: free some, record elsewhere, or give a limit"
            )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for gradients, as none below `start` does in training.

    Even without gradients some kernels look at that, and give other last digits.
    """
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _stamps(parameters: Sequence[nn.Parameter]) -> list[tuple[int, int, int]]:
    """Which parameters these are, where, and how often each was written to."""
    return [(id(p), p.data_ptr(), p._version) for p in parameters]


def _leaf(entry: list[Any], kept: Mapping[str, Tensor], device: torch.device) -> Any:
    kind, *about = entry
    if kind == "kept":
        return kept[about[0]]
    if kind == "value":
        return about[0]
    return torch.zeros(about[0], dtype=getattr(torch, about[1]), device=device)


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")  # a kill leaves no half file under the real name
    try:
        partial.write_bytes(data)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): free some space, record elsewhere, or give a limit"
        ) from error
    partial.replace(path)


def _bytes(kept: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in kept.values())


def _checksum(kept: Mapping[str, Tensor], plan: str = "") -> int:
    total = zlib.crc32(plan.encode())
    for name in sorted(kept):
        total = zlib.crc32(f"{name} {kept[name].dtype} {list(kept[name].shape)}".encode(), total)
        raw = kept[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(raw.numpy().data, total)
    return total


def _key(vlm: VLM, batches: Sequence[Inputs], start: int) -> str:
    """Hash of all that decides what is recorded."""
    digest = hashlib.blake2b(digest_size=16)
    about = (model_identity(vlm), start, vlm.device.type, torch.__version__, transformers.__version__)
    digest.update(repr(about).encode())
    for inputs in batches:
        leaves, spec = pytree.tree_flatten(dict(sorted(inputs.items())))
        tensors = {str(j): leaf for j, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        digest.update(f"{spec} {others!r} {_checksum(tensors)}".encode())
    return digest.hexdigest()
