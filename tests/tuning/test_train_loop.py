import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from vlalign_utils.paths import ROOT
from vlalign_utils.tuning import train_loop
from vlalign_utils.tuning.train_loop import DivergedError, History, Schedule, fit, rate
from vlalign_utils.tuning.training_state import load_state, save_state
from vlalign_utils.zoo.stages import muon_and_adamw

SCHEDULE = Schedule(steps=20, batch_size=32, lr=0.2)


def data(first):
    for step in range(first, SCHEDULE.steps):
        generator = torch.Generator().manual_seed(step)
        yield torch.randn(SCHEDULE.batch_size, 3, generator=generator)


@pytest.fixture(autouse=True)
def _fresh():
    """Accelerate keeps one state for a process: another test's precision must not become this one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Sums(nn.Module):
    """Learns to sum three numbers, by a layer that Muon trains and one that AdamW does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3, bias=False)])
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        return (self.last(self.layers[0](x)) - x.sum(1, keepdim=True)).square().mean()


def train(path, batches=data):
    torch.manual_seed(0)
    task = Sums()
    history = fit(task, SCHEDULE, batches, Accelerator(cpu=True), path, "t", muon_and_adamw)
    return task, history


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_it_learns_and_keeps_its_curve(tmp_path):
    _, history = train(tmp_path / "a.ckpt")
    assert history.step == 20
    assert len(history.curve) == 20
    assert history.curve[-1][1] < history.curve[0][1] / 10


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop, "SAVE_EVERY", 5)
    whole, _ = train(tmp_path / "whole.ckpt")

    def cut(first):
        for step, batch in enumerate(data(first), first):
            if step == 13:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.ckpt", cut)
    resumed, history = train(tmp_path / "cut.ckpt")
    assert history.step == 20
    assert same(whole, resumed)


SHARED = """
import sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from test_train_loop import SCHEDULE, Sums, data
from vlalign_utils.tuning.train_loop import fit
from vlalign_utils.zoo.stages import muon_and_adamw

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
share = slice(accelerator.process_index, None, 2)
torch.manual_seed(0)
task = Sums()
batches = lambda first: (x[share] for x in data(first))
fit(task, SCHEDULE, batches, accelerator, Path({path!r}), "t", muon_and_adamw)
"""


@pytest.mark.slow
def test_two_processes_that_share_the_rows_train_as_one_does(tmp_path):
    whole, _ = train(tmp_path / "whole.ckpt")
    script, path = tmp_path / "shared.py", str(tmp_path / "shared.ckpt")
    script.write_text(
        SHARED.format(path=path, paths=[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    )
    # What `accelerate launch` starts for several GPUs; on CPUs it asks for MPI instead.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shared = load_state(Path(path))
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(shared["weights"][name], weight.detach(), rtol=1e-3, atol=1e-4)
    assert shared["history"]["step"] == SCHEDULE.steps


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = train(tmp_path / "a.ckpt")
    again, history = train(tmp_path / "a.ckpt", lambda step: iter(()))
    assert same(first, again)
    assert history.step == 20


def test_frozen_parameters_stay(tmp_path):
    task = Sums()
    task.last.bias.requires_grad_(False)
    before = task.last.bias.clone()
    fit(task, SCHEDULE, data, Accelerator(cpu=True), tmp_path / "a.ckpt", "t", muon_and_adamw)
    assert torch.equal(before, task.last.bias)


def test_divergence_is_an_error_that_says_where(tmp_path):
    with torch.no_grad():
        task = Sums()
        task.last.bias.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="at step 0; lower the learning rate"):
        fit(task, SCHEDULE, data, Accelerator(cpu=True), tmp_path / "a.ckpt", "t", muon_and_adamw)


def few(path, batches, task=None, schedule=SCHEDULE, resumable=True):
    torch.manual_seed(0)
    task = task or Sums()
    cpu = Accelerator(cpu=True)
    history = fit(task, schedule, batches, cpu, path, "t", muon_and_adamw, bar=False, resumable=resumable)
    return task, history


class Parts(Sums):
    """The same task, given a part of the loss with each batch."""

    def forward(self, x, share):
        return share * super().forward(x)


@pytest.mark.parametrize("cuts", [(32,), (16, 16), (5, 20, 7)])
def test_a_tuple_of_batches_is_one_step(tmp_path, cuts):
    whole, expected = few(tmp_path / "whole.ckpt", data)
    parts = (tuple((p, len(p) / 32) for p in x.split(cuts)) for x in data(0))
    torch.manual_seed(0)
    task, found = few(tmp_path / "parts.ckpt", lambda first: parts, Parts())
    assert found.step == 20
    assert [x for _, x in found.curve] == pytest.approx([x for _, x in expected.curve], abs=2e-5)
    for p, q in zip(whole.parameters(), task.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def rising(history, losses):
    found = []
    for loss in losses:
        found.append(history.note(loss))
        history.step += 1
    return found


def test_a_loss_far_above_its_beginning_is_divergence():
    assert not any(rising(History(), [2.0] * 40))
    assert not any(rising(History(), [2.0] * 25 + [7.9] * 25))
    late = rising(History(), [2.0] * 25 + [8.1] * 25)
    assert late.index(True) == 34  # when the ten last are all above four times the ten first
    assert not any(rising(History(), [2.0] * 25 + [60.0] + [2.0] * 20))  # one odd batch
    assert not any(rising(History(), [2.0] * 10 + [9.0] * 11))  # too early to tell
    for bad in (math.nan, math.inf):
        assert rising(History(), [2.0, bad]) == [False, True]


def test_divergence_brings_the_last_checkpoint_back(tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop, "SAVE_EVERY", 5)
    good, _ = few(tmp_path / "good.ckpt", data)

    def spoilt(first):
        for step, x in enumerate(data(first), first):
            yield x * math.inf if step == 8 else x

    torch.manual_seed(0)
    task = Sums()
    with pytest.raises(DivergedError, match="t: the loss is nan at step 8; lower the learning rate") as error:
        few(tmp_path / "bad.ckpt", spoilt, task)
    state = load_state(tmp_path / "bad.ckpt")
    assert state["history"]["step"] == 5
    assert error.value.history.step == 8
    assert all(torch.equal(p, state["weights"][n]) for n, p in task.named_parameters())
    resumed, _ = few(tmp_path / "bad.ckpt", data)
    assert same(good, resumed)


def test_a_run_that_is_not_resumable_keeps_good_weights_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop, "SAVE_EVERY", 5)
    few(tmp_path / "whole.ckpt", data)
    task = Sums()
    few(tmp_path / "a.ckpt", data, task, resumable=False)
    states = {name: load_state(tmp_path / f"{name}.ckpt") for name in ("whole", "a")}
    assert states["whole"]["optimizers"]
    assert not states["a"]["optimizers"]
    assert states["whole"]["history"]["step"] == 20
    assert states["a"]["history"]["step"] == 15  # none at the end: nothing can go wrong any more
    task = Sums()
    with pytest.raises(DivergedError):
        few(tmp_path / "b.ckpt", lambda first: (x * math.inf for x in data(first)), task, resumable=False)
    good = load_state(tmp_path / "b.ckpt")["weights"]
    assert all(torch.equal(p, good[n]) for n, p in task.named_parameters())


class Steep(Sums):
    """A loss that is finite where its gradient is not."""

    def forward(self, x):
        return (self.last.bias - self.last.bias.detach()).abs().sqrt().sum()


def test_gradients_that_are_not_finite_never_reach_the_weights(tmp_path):
    task = Steep()
    before = [p.clone() for p in task.parameters()]
    with pytest.raises(DivergedError, match="t: the gradients are not finite at step 0"):
        few(tmp_path / "a.ckpt", data, task)
    assert all(torch.equal(p, q) for p, q in zip(before, task.parameters(), strict=True))


def test_weights_spoilt_by_the_last_step_are_not_kept(tmp_path):
    task = Sums()
    before = [p.clone() for p in task.parameters()]
    schedule = Schedule(steps=1, batch_size=32, lr=1e308)
    with pytest.raises(DivergedError, match="t: weights are not finite after step 0"):
        few(tmp_path / "a.ckpt", lambda first: iter([next(data(0))]), task, schedule)
    assert all(torch.equal(p, q) for p, q in zip(before, task.parameters(), strict=True))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    few(tmp_path / "a.ckpt", data)
    other = Schedule(steps=30, batch_size=32, lr=0.2)
    with pytest.raises(ValueError, match="is the checkpoint of another run than 't': delete it"):
        few(tmp_path / "a.ckpt", data, schedule=other)
    state = load_state(tmp_path / "a.ckpt")
    name, value = next(iter(state["weights"].items()))
    save_state(tmp_path / "a.ckpt", {**state, "weights": {**state["weights"], name: value[:1]}})
    with pytest.raises(ValueError, match="is the checkpoint of another run than 't': delete it"):
        few(tmp_path / "a.ckpt", data)


def test_fewer_rows_than_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 64)
    with pytest.raises(ValueError, match="batch_size is 32, less than one row for each of the 64 processes"):
        fit(Sums(), SCHEDULE, data, Accelerator(cpu=True), tmp_path / "a.ckpt", "t", muon_and_adamw)


def test_matrices_of_layers_go_to_muon_all_else_to_adamw():
    adamw, muon = muon_and_adamw(dict(Sums().named_parameters()), SCHEDULE)
    shapes = [[tuple(p.shape) for p in o.param_groups[0]["params"]] for o in (adamw, muon)]
    assert shapes == [[(1, 3), (1,)], [(3, 3)]]


def test_the_rate_warms_up_and_falls_to_a_fiftieth():
    rates = [rate(SCHEDULE, step) for step in range(20)]
    assert max(rates) == rates[0] == 0.2  # one step of warm-up
    assert rates == sorted(rates, reverse=True)
    assert rate(SCHEDULE, 20) == pytest.approx(0.004)


def test_a_flipped_bit_in_a_checkpoint_is_found_and_a_new_run_heals(tmp_path):
    path = tmp_path / "seed.0"
    whole, _ = few(path, data)
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(
        ValueError, match=r"seed\.0 is damaged, or no checkpoint of a run: delete it, and the"
    ):
        few(path, data)
    path.unlink()
    assert same(few(path, data)[0], whole)
