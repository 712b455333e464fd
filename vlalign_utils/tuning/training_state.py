"""Checkpoint of a training run: nested values and tensors in one checksummed safetensors file, no pickle."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from vlalign_utils.inference.shards import DamagedError, read_shard, write_shard


def save_state(path: Path, state: Any) -> None:
    """Write mappings and lists of tensors, numbers and text, whole or not at all.

    Raises TypeError for a leaf of another kind, and WriteError where the disk is full or read-only.
    """
    leaves, spec = pytree.tree_flatten_with_path(state)
    tensors: dict[str, Tensor] = {}
    values: list[Any] = []  # of every leaf: the value, or the name of its tensor
    for keys, leaf in leaves:
        if isinstance(leaf, Tensor):
            name = pytree.keystr(keys)
            tensors[name] = leaf
            values.append({"tensor": name})
        else:
            values.append(leaf)
    write_shard(path, tensors, {"structure": pytree.treespec_dumps(spec), "values": values})


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote, on the CPU. Raises ValueError for a damaged file or another kind."""
    try:
        tensors, about = read_shard(path)
        values = [tensors[v["tensor"]] if isinstance(v, dict) else v for v in about["values"]]
        return pytree.tree_unflatten(values, pytree.treespec_loads(about["structure"]))
    except (DamagedError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, or no checkpoint of a run: delete it, and the run starts again"
        ) from error
