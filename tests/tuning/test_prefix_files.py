import pytest
import torch
from tiny_models import build
from torch import Tensor

from vlalign_utils.tuning import prefix_files
from vlalign_utils.tuning.needed_tensors import leaves, specs, unasked
from vlalign_utils.tuning.prefix_files import deserialise, serialise


def test_what_is_kept_comes_back_and_the_rest_is_nan() -> None:
    vlm, inputs = build("qwen3_vl")
    run = vlm.record(stop=2, **inputs)
    needed = unasked(run, 2)
    kept, plan = serialise(run, 2, needed)
    back = deserialise(vlm, inputs, 2, specs(run), kept, plan, torch.nan)
    assert specs(back) == specs(run)
    lost = 0
    for (slot, was), (_, leaf) in zip(leaves(run), leaves(back), strict=True):
        if isinstance(was, Tensor) and slot not in needed:
            lost += 1
            assert leaf.isnan().all()
            assert (leaf.shape, leaf.dtype) == (was.shape, was.dtype)
        elif isinstance(was, Tensor):
            assert torch.equal(leaf, was)
        else:
            assert leaf == was
    assert lost > 0
    assert back.resid[2].shape == run.resid[2].shape


def test_tensors_that_share_memory_are_kept_apart() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(stop=1, **inputs)
    kept, _ = serialise(run, 1, {slot for slot, leaf in leaves(run) if isinstance(leaf, Tensor)})
    places = [value.data_ptr() for value in kept.values() if value.numel()]
    assert len(places) == len(set(places)) > 3


def test_what_no_file_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, inputs = build("llava")
    run = vlm.record(stop=2, **inputs)
    monkeypatch.setattr(prefix_files, "leaves", lambda run: [(("tower", 0, 0), object())])
    with pytest.raises(ValueError, match="a object runs before layer 2, which no file can hold"):
        serialise(run, 2, set())
