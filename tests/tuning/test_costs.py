from functools import cache, partial
from typing import Any

import pytest
import torch
from tiny_models import Inputs, build
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from vlalign_utils import VLM
from vlalign_utils.tuning.costs import of_training, predicted
from vlalign_utils.tuning.flops import Forward, Part, forward_flops, step_flops
from vlalign_utils.tuning.strategies import Strategy, strategies, trained

CHOSEN = strategies(4, (1, 3))
# Predicted, not computed: gradients of the first trained product's input and of what cross-attention reads.
TOLERANCE = {"llava": 0.002, "gemma3": 1e-9, "qwen3_vl": 1e-9, "mllama": 0.02}
each_measured = pytest.mark.parametrize("family", TOLERANCE)


@cache
def forward_of(family: str, attention: str = "sdpa") -> Forward:
    return forward_flops(*build(family, attention))


def step(vlm: VLM, inputs: Inputs) -> None:
    logits = vlm.model(**inputs, use_cache=False).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, 1:].flatten()).backward()


def asked(vlm: VLM, strategy: Strategy) -> None:
    vlm.model.requires_grad_(False)
    for parameter in trained(vlm, strategy):
        parameter.requires_grad_(True)


def repeated(vlm: VLM) -> None:
    for layer in vlm.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


@pytest.mark.slow_except("full", "band")
@each_measured
@pytest.mark.parametrize("name", ["full", "band", "early", "late", "connector"])
def test_prediction_agrees_with_a_real_step(family: str, name: str) -> None:
    vlm, inputs = build(family)
    asked(vlm, CHOSEN[name])
    expected = step_flops(lambda: step(vlm, inputs))
    assert predicted(CHOSEN[name], forward_of(family)) == pytest.approx(expected, rel=TOLERANCE[family])


@pytest.mark.parametrize("name", ["full", "band"])
def test_eager_attention_goes_back_at_another_price(name: str) -> None:
    vlm, inputs = build("qwen3_vl", "eager")
    asked(vlm, CHOSEN[name])
    expected = step_flops(lambda: step(vlm, inputs))
    assert predicted(CHOSEN[name], forward_of("qwen3_vl", "eager")) == expected
    assert predicted(CHOSEN[name], forward_of("qwen3_vl")) > expected


@pytest.mark.parametrize(
    ("family", "name"),
    [("qwen3_vl", "full"), ("qwen3_vl", "band"), ("llava", "connector"), ("mllama", "band")],
)
@pytest.mark.parametrize(("early_stop", "most"), [(False, 0.0), (True, 0.07)])
def test_checkpointing_repeats_what_gradient_passes(
    family: str, name: str, early_stop: bool, most: float
) -> None:
    vlm, inputs = build(family)
    asked(vlm, CHOSEN[name])
    repeated(vlm)
    # Torch leaves out a layer's last product when it need not keep what comes after.
    with set_checkpoint_early_stop(early_stop):
        expected = step_flops(lambda: step(vlm, inputs))
    ratio = predicted(CHOSEN[name], forward_of(family), checkpointing=True) / expected
    assert -1e-9 <= ratio - 1 <= most + TOLERANCE[family]


@each_measured
def test_a_recorded_input_costs_nothing_below(family: str) -> None:
    vlm, inputs = build(family)
    strategy, forward = CHOSEN["band"], forward_of(family)
    run = vlm.record(**inputs)
    asked(vlm, strategy)
    expected = step_flops(lambda: vlm.replay(run, start=1).logits.sum().backward())
    assert predicted(strategy, forward, recorded=True) == pytest.approx(expected, rel=TOLERANCE[family])
    below = forward.layers[0].forward
    saved = predicted(strategy, forward) - predicted(strategy, forward, recorded=True)
    assert saved == forward.tower.forward + forward.connector.forward + below


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["band", "early"])
def test_adapters_cost_their_rank(name: str, checkpointing: bool) -> None:
    rank, (vlm, inputs) = 4, build("qwen3_vl")
    strategy, forward = CHOSEN[name].adapters(rank), forward_of("qwen3_vl")
    vlm.model.requires_grad_(False)

    def add(down: torch.Tensor, up: torch.Tensor, module: Any, args: Any, output: Any) -> Any:
        return output + args[0] @ down @ up

    for k in strategy.layers:
        for module in vlm.layers[k].modules():
            if isinstance(module, torch.nn.Linear):
                down = torch.randn(module.in_features, rank, requires_grad=True)
                up = torch.randn(rank, module.out_features, requires_grad=True)
                module.register_forward_hook(partial(add, down, up))
    if checkpointing:
        repeated(vlm)
    with set_checkpoint_early_stop(False):
        expected = step_flops(lambda: step(vlm, inputs))
    ratio = predicted(strategy, forward, checkpointing=checkpointing) / expected
    # The lowest queries, keys and values need no gradient of their input.
    first = 2 * 28 * 32 * (32 + 16 + 16) + rank * 2 * 28 * 3 * 32
    assert ratio == pytest.approx(1 + first / expected, rel=1e-9)


def test_cheaper_the_less_is_trained() -> None:
    forward = forward_of("llava")
    order = ["late", "band", "early", "full"]
    costs = [predicted(CHOSEN[name], forward) for name in order]
    assert costs == sorted(costs)


def test_impossible_strategies_are_refused() -> None:
    forward = Forward(Part(1), Part(), (Part(1),) * 4, Part(1))
    with pytest.raises(ValueError, match="trains layer 4, the model has 4 layers"):
        predicted(Strategy("high", (4,)), forward)
    with pytest.raises(ValueError, match="'connector' trains weights below layer 0"):
        predicted(CHOSEN["connector"], forward, recorded=True)
    with pytest.raises(ValueError, match="LoRA in the MLP alone, and FLOPs are counted for whole layers"):
        predicted(CHOSEN["band"].adapters(2, "MLP"), forward)


@each_measured
def test_a_recorded_training_is_its_steps_and_one_forward_up_to_the_band_for_every_batch(family: str) -> None:
    forward, band = forward_of(family), CHOSEN["band"]
    vlm, inputs = build(family)
    with torch.no_grad():
        recording = step_flops(lambda: vlm.record(stop=band.start, **inputs))
    steps = 6 * predicted(band, forward, recorded=True)
    assert of_training(band, forward, 6, 2, recorded=True) == steps + 2 * recording
    assert of_training(band, forward, 6, 2) == 6 * predicted(band, forward)
