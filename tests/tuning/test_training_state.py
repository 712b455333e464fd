"""Checkpoints of training runs: exact, without pickle, and damaged ones are found."""

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vlalign_utils.paths import WriteError
from vlalign_utils.tuning.training_state import load_state, save_state


def trained(optimizer: str) -> dict[str, Any]:
    """State of an optimiser after two steps, beside values of every other kind."""
    weights = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4, 4))]
    made: dict[str, Any] = {
        "adamw": lambda: torch.optim.AdamW(weights, lr=0.1, betas=(0.9, 0.95)),
        "fused": lambda: torch.optim.AdamW(weights, lr=0.1, fused=True),
        "foreach": lambda: torch.optim.AdamW(weights, lr=0.1, foreach=True, amsgrad=True),
        "muon": lambda: torch.optim.Muon([{"params": weights, "times": 2.0}], lr=0.1),
    }
    own = made[optimizer]()
    for _ in range(2):
        own.zero_grad()
        sum(w.square().sum() for w in weights).backward()
        own.step()
    state = own.state_dict()
    state["state"] = defaultdict(dict, state["state"])
    return {
        "weights": {f"layer.{i}": w.detach() for i, w in enumerate(weights)},
        "optimizers": [state],
        "history": {"curve": [(1, 0.1), (2, 1 / 3)], "none": None, "empty": [], "big": 1e300},
        "run": {"label": 'a "band", é', "of": "", "resumed": True},
    }


@pytest.mark.parametrize("optimizer", ["adamw", "fused", "foreach", "muon"])
def test_what_was_saved_comes_back_with_its_types(tmp_path: Path, optimizer: str) -> None:
    state = trained(optimizer)
    save_state(tmp_path / "seed.0", state)
    found = load_state(tmp_path / "seed.0")
    leaves, spec = pytree.tree_flatten(state)
    others, same = pytree.tree_flatten(found)
    assert spec == same
    assert sum(isinstance(leaf, Tensor) for leaf in leaves) >= 4
    for leaf, other in zip(leaves, others, strict=True):
        assert type(leaf) is type(other) or isinstance(leaf, Tensor)
        assert leaf.equal(other) and leaf.dtype == other.dtype if isinstance(leaf, Tensor) else leaf == other


def test_checkpoints_that_differ_after_a_dot_are_written_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(
        "vlalign_utils.inference.shards.save_file",
        lambda *given: (written.append(given[1]), given[1].touch()),
    )
    for name in ("seed.0", "seed.1", "seed.0"):
        save_state(tmp_path / name, {"step": 1})
    assert len(set(written)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed.0", "seed.1"]


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_state(path, trained("adamw"))
    good = path.read_bytes()
    several = [good[: len(good) // 2], b"", b"{}", pickle.dumps({"weights": {}})]
    for place in (3, 20, good.index(b"adam" if b"adam" in good else b"lr"), len(good) // 2, len(good) - 1):
        several.append(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    for content in several:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"c is damaged, or no checkpoint of a run: delete it, and the run"
        ):
            load_state(path)


def test_what_no_checkpoint_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(tmp_path / "c", {"dtype": torch.float32})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    save_state(tmp_path / "c", {"step": 1})
    monkeypatch.setattr("vlalign_utils.inference.shards.save_file", full)
    with pytest.raises(WriteError, match=r"c cannot be written \(No space left on device\): free some space"):
        save_state(tmp_path / "c", {"step": 2})
    assert load_state(tmp_path / "c") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
