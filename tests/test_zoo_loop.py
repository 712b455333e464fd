import math

import pytest
import torch
from torch import nn

from vlalign_utils.zoo import loop
from vlalign_utils.zoo.loop import fit, rate
from vlalign_utils.zoo.recipe import Schedule

SCHEDULE = Schedule(steps=20, batch_size=32, lr=0.2)


def data(first):
    for step in range(first, SCHEDULE.steps):
        generator = torch.Generator().manual_seed(step)
        yield torch.randn(SCHEDULE.batch_size, 3, generator=generator)


def train(path, batches=data):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    history = fit(
        model, SCHEDULE, batches, lambda x: (model(x) - x.sum(1, keepdim=True)).square().mean(), path, "t"
    )
    return model, history


def test_it_learns_and_keeps_its_curve(tmp_path):
    model, history = train(tmp_path / "a.ckpt")
    assert history.step == 20
    assert len(history.curve) == 20
    assert history.curve[-1][1] < history.curve[0][1] / 10
    assert torch.allclose(model.weight, torch.ones(1, 3), atol=0.3)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 5)
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
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = train(tmp_path / "a.ckpt")
    again, history = train(tmp_path / "a.ckpt", lambda step: iter(()))
    assert torch.equal(first.weight, again.weight)
    assert history.step == 20


def test_frozen_parameters_stay(tmp_path):
    model = nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit(model, SCHEDULE, data, lambda x: model(x).square().mean(), tmp_path / "a.ckpt", "t")
    assert torch.equal(before, model.bias)


def test_divergence_is_an_error_that_says_where(tmp_path):
    model = nn.Linear(3, 1)
    with pytest.raises(FloatingPointError, match="at step 0; lower the learning rate"):
        fit(model, SCHEDULE, data, lambda x: model(x).sum() * math.inf, tmp_path / "a.ckpt", "t")


def test_the_rate_warms_up_and_falls_to_a_fiftieth():
    rates = [rate(SCHEDULE, step) for step in range(20)]
    assert max(rates) == rates[0] == 0.2  # one step of warm-up
    assert rates == sorted(rates, reverse=True)
    assert rate(SCHEDULE, 20) == pytest.approx(0.004)
