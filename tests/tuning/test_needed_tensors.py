import pytest
import torch
from tiny_models import build
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.driver.recording import Run
from vlalign_utils.tuning.needed_tensors import Slot, leaves, needed, unasked


def read_alone(vlm: VLM, run: Run, start: int, logits: Tensor) -> set[Slot]:
    """One by one, each in its own memory: what changes the logits when NaN takes its place."""
    found = set()
    for slot, leaf in leaves(run):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            kept = leaf.clone()
            leaf.data.fill_(torch.nan)
            if not torch.equal(vlm.replay(run, start=start).logits, logits):
                found.add(slot)
            leaf.data.copy_(kept)
    return found


@pytest.mark.parametrize(
    ("family", "start"), [("llava", 0), ("llava", 2), ("gemma3", 2), ("qwen3_vl", 1), ("mllama", 1)]
)
def test_all_that_is_read_is_kept_and_nothing_large_that_is_not(family: str, start: int) -> None:
    vlm, inputs = build(family)
    run = vlm.record(stop=start, **inputs)
    # Tensors that share memory would be spoiled together.
    for _, leaf in leaves(run):
        if isinstance(leaf, Tensor):
            leaf.data = leaf.data.clone()
    with torch.no_grad():
        logits = vlm.replay(run, start=start).logits
        read = read_alone(vlm, run, start, logits)
    kept = needed(vlm, run, start, logits)
    assert read
    assert read <= kept
    large = {
        slot
        for slot, leaf in leaves(run)
        if isinstance(leaf, Tensor) and leaf.nbytes >= run.resid[start].nbytes
    }
    assert large & kept == large & read


def test_one_replay_is_enough_where_the_stream_is_all_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, inputs = build("llava")
    run = vlm.record(stop=2, **inputs)
    with torch.no_grad():
        logits = vlm.replay(run, start=2).logits
    calls = []
    replay = vlm.replay
    monkeypatch.setattr(vlm, "replay", lambda *args, **options: calls.append(1) or replay(*args, **options))
    assert needed(vlm, run, 2, logits) == unasked(run, 2)
    assert len(calls) == 1
