"""What a plan says is compared with what real training steps allocate."""

import warnings
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import build
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from vlalign_utils.tuning.memory_plan import Plan, _states, plan, table
from vlalign_utils.tuning.strategies import Strategy, strategies, trained

BATCH, TOKENS = 2, 14  # of the inputs of the tiny models
FULL, BAND = (strategies(4, (1, 3))[name] for name in ("full", "band"))
HALF = torch.bfloat16
FAMILIES = pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "gemma4", "lfm2_vl"])


class Real:
    """A model in memory, ready to be trained as a plan assumes: float32 where it is trained."""

    def __init__(
        self, family: str, strategy: Strategy, dtype: torch.dtype = HALF, checkpointing: bool = False
    ) -> None:
        vlm, inputs = build(family)
        self.model, self.dtype = vlm.model, dtype
        for p in self.model.parameters():  # buffers stay as they are, as when weights are loaded
            p.data = p.data.to(dtype)
        self.layers = vlm.layers
        self.inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        self.model.requires_grad_(False)
        self.trained = trained(vlm, strategy)
        for p in self.trained:
            p.data = p.data.float()
            p.requires_grad_(True)
        if checkpointing:
            self.model.train()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                # A saved state of the random generator is as large as a tiny model's activations.
                self.model.gradient_checkpointing_enable(
                    {"use_reentrant": False, "preserve_rng_state": False}
                )
            self.model.disable_input_require_grads()

    def loss(self) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(**self.inputs, use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), self.inputs["input_ids"].flatten())

    def weights(self) -> int:
        return sum(t.numel() * t.element_size() for t in {*self.model.parameters(), *self.model.buffers()})

    def saved(self) -> int:
        """Bytes that autograd holds when a forward is over, by its own hooks."""
        held: weakref.WeakSet[nn.Module] = weakref.WeakSet()

        def pack(tensor: Tensor) -> nn.Module:
            box = nn.Module()  # any object that autograd alone keeps alive
            box.__dict__["tensor"] = tensor
            held.add(box)
            return box

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            loss = self.loss()
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        storages = [box.tensor.untyped_storage() for box in held]
        del loss
        return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())


class Ends(TorchDispatchMode):
    """Marks in the profiler's record where each operation of a forward or backward pass has ended."""

    NAME = "end of an operation"

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        with record_function(self.NAME):
            return output


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes left when some work is done, and the most between two operations, by the allocator's own record.

    Within an operation the kernel that a library picks for this processor may take scratch memory (oneDNN
    does, for bfloat16 where the processor multiplies it): that is no tensor, and no GPU has it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, Ends():
        left = work()
    assert profiler.profiler is not None
    now = most = ends = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
        elif event.name() == Ends.NAME:
            most, ends = max(most, now), ends + 1
    assert ends > 100  # of a forward, more with its backward
    del left
    return now, most


@cache  # a plan is of shapes alone
def planned(family: str, strategy: Strategy, **options: object) -> Plan:
    return plan(build(family)[0], strategy, BATCH, TOKENS, **options)  # type: ignore[arg-type]


@pytest.mark.slow_except("llava")
@pytest.mark.parametrize("family", ["llava", "gemma4"])
def test_weights_gradients_and_moments_are_those_of_a_real_step(family: str) -> None:
    real = Real(family, BAND)
    optimiser = torch.optim.AdamW(real.trained)
    real.loss().backward()
    optimiser.step()
    expected = planned(family, BAND, checkpointing=False)
    assert expected.weights == pytest.approx(real.weights(), abs=64)  # scalars beside the weights
    assert expected.parameters == sum(p.numel() for p in real.trained)
    assert expected.gradients == sum(p.grad.nbytes for p in real.trained if p.grad is not None)
    moments = [s[name] for s in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert expected.states == sum(m.nbytes for m in moments)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [HALF, torch.float32])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_activations_of_a_band_are_what_autograd_saves(family: str, dtype: torch.dtype) -> None:
    expected = planned(family, BAND, dtype=dtype, checkpointing=False)
    assert expected.activations + expected.loss == pytest.approx(Real(family, BAND, dtype).saved(), rel=0.01)


@pytest.mark.slow_except("True-llava")
@FAMILIES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_a_band_takes_what_the_allocator_says(family: str, checkpointing: bool) -> None:
    real = Real(family, BAND, HALF, checkpointing)
    real.loss().backward()  # what is made once and kept
    real.model.zero_grad()
    kept, _ = allocated(real.loss)
    _, most = allocated(lambda: real.loss().backward())
    expected = planned(family, BAND, optimiser="adamw8bit", checkpointing=checkpointing)
    assert expected.activations + expected.loss == pytest.approx(kept, rel=0.06)
    assert expected.step == pytest.approx(most, rel=0.06)


@pytest.mark.slow_except("llava-True")
@pytest.mark.parametrize(
    ("family", "checkpointing"), [("llava", True), ("qwen3_vl", False), ("gemma3", True)]
)
def test_full_tuning_is_never_planned_too_small(family: str, checkpointing: bool) -> None:
    real = Real(family, FULL, HALF, checkpointing)
    real.loss().backward()
    real.model.zero_grad()
    _, most = allocated(lambda: real.loss().backward())
    expected = planned(family, FULL, optimiser="adamw8bit", checkpointing=checkpointing)
    assert 0.95 * most <= expected.step <= 1.5 * most  # the connector is estimated, from above


@pytest.mark.slow
def test_gradients_stay_while_batches_are_accumulated() -> None:
    real = Real("llava", BAND)
    real.loss().backward()
    _, most = allocated(lambda: real.loss().backward())
    expected = planned("llava", BAND, optimiser="adamw8bit", checkpointing=False, accumulate=4)
    assert expected.step == pytest.approx(most + expected.gradients, rel=0.03)


@pytest.mark.slow
def test_lora_adds_two_matrices_to_every_linear_part_of_its_layers() -> None:
    vlm, _ = build("llava")
    linear = [m for k in BAND.layers for m in vlm.layers[k].modules() if isinstance(m, nn.Linear)]
    lora, whole = planned("llava", BAND.adapters(4)), planned("llava", BAND)
    assert len(linear) == 14
    assert lora.parameters == sum(4 * (m.in_features + m.out_features) for m in linear)
    own = 2 * sum(p.numel() for p in vlm.model.parameters()) + sum(b.nbytes for b in vlm.model.buffers())
    assert lora.weights == own + 4 * lora.parameters
    assert lora.gradients == lora.trained == 4 * lora.parameters
    assert lora.total < whole.total
    alone = [planned("llava", BAND.adapters(4, part)) for part in ("attention", "MLP")]
    assert sum(plan.parameters for plan in alone) == lora.parameters
    assert min(plan.parameters for plan in alone) > 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_takes_what_peft_takes(checkpointing: bool) -> None:
    real = Real("qwen3_vl", BAND, HALF, checkpointing)
    for p in real.trained:
        p.data = p.data.to(HALF)
    layers = real.layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in BAND.layers:
            names = [n.split(".")[-1] for n, m in layers[k].named_modules() if isinstance(m, nn.Linear)]
            inject_adapter_in_model(LoraConfig(r=4, target_modules=names), layers[k])
    for name, p in real.model.named_parameters():
        p.requires_grad_("lora_" in name)
        p.data = p.data.float() if "lora_" in name else p.data
    real.loss().backward()
    real.model.zero_grad()
    kept, _ = allocated(real.loss)
    _, most = allocated(lambda: real.loss().backward())
    expected = planned("qwen3_vl", BAND.adapters(4), checkpointing=checkpointing)
    assert expected.activations + expected.loss == pytest.approx(kept, rel=0.06)
    assert expected.step == pytest.approx(most, rel=0.06)


@pytest.mark.slow
def test_less_is_kept_for_later_layers_and_with_checkpointing() -> None:
    named = {
        name: s for name, s in strategies(4, (1, 3)).items() if name in ("late", "band", "early", "full")
    }
    kept = {name: planned("llava", s, checkpointing=False).activations for name, s in named.items()}
    assert kept["late"] < kept["band"] < kept["early"] < kept["full"]
    assert planned("llava", BAND).activations < 0.3 * kept["band"]
    assert planned("llava", BAND, answers=2).loss == planned("llava", BAND).loss / 7


@pytest.mark.slow
def test_prefixes_are_what_enters_the_band_once_per_item() -> None:
    vlm, inputs = build("llava")
    stream = vlm.prefix(inputs, 1).to(HALF)
    assert planned("llava", BAND, items=10).prefixes == 10 * stream.nbytes // BATCH
    assert planned("llava", BAND).prefixes == 0
    assert planned("llava", FULL, items=10).prefixes == 0
    assert planned("llava", Strategy("early", (0, 1)), items=10).prefixes == 10 * stream.nbytes // BATCH


def test_states_of_the_8_bit_optimiser() -> None:
    assert _states(4095, "adamw8bit") == 2 * 4 * 4095
    # Two codes of a byte, and two float32 scales for every 256 of them, the last ones included.
    assert _states(4097, "adamw8bit") == 2 * 4097 + 2 * 4 * 17
    assert _states(4097, "adamw") == 2 * 4 * 4097


@pytest.mark.slow
def test_every_device_holds_everything_and_buckets_of_gradients() -> None:
    alone, four = planned("llava", BAND), planned("llava", BAND, devices=4)
    assert alone.per_device == alone.total == four.total == alone.weights + alone.states + alone.step
    assert four.per_device == four.total + four.gradients


@pytest.mark.slow
def test_a_folder_a_configuration_and_a_model_give_the_same(hub_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((hub_folder / "config.json").read_text())
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    vlm, _ = build("llava")
    before = [(p.dtype, p.device, p.requires_grad) for p in vlm.model.parameters()]
    plans = [plan(m, BAND, BATCH, TOKENS) for m in (str(tmp_path), config, vlm, vlm.model)]
    assert plans == [plans[0]] * 4
    assert [(p.dtype, p.device, p.requires_grad) for p in vlm.model.parameters()] == before


def test_what_fits_and_what_to_change() -> None:
    one = planned("llava", BAND, checkpointing=False)
    assert one.fits(round(one.total / 0.89))
    assert not one.fits(round(one.total / 0.91))
    assert "band fits, with" in one.advice(2 * one.total)
    says = one.advice(one.total)
    ways = ("checkpointing", "smaller batch_size", 'optimiser="adamw8bit"', "fewer layers", "LoRA")
    assert all(way in says for way in ways)
    assert "frozen weights alone" in one.advice(one.frozen)
    assert "band" in str(one)
    assert "total" in str(one)
    assert str(one) == table([one])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "sgd"}, "optimiser='sgd', expected one of adamw, adamw8bit"),
        ({"dtype": "int8"}, "dtype='int8', expected one of float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"tokens": 0}, "tokens is 0, expected at least 1"),
        ({"answers": 99}, "answers=99: expected 0 or more, and at most 14"),
        ({"strategy": Strategy("high", (2, 9))}, "trains layer 9, the model has 4 layers"),
        ({"model": transformers.LlamaConfig()}, "LlamaConfig is not of an image-text-to-text model"),
    ],
)
def test_what_is_refused(options: dict, message: str, checks_off: None) -> None:
    given = {"model": build("llava")[0], "strategy": BAND, "batch_size": BATCH, "tokens": TOKENS}
    with pytest.raises(ValueError, match=message):
        plan(**given | options)


@pytest.mark.parametrize("family", ["mllama", "idefics"])
def test_a_decoder_that_needs_an_image_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match="no plan for a decoder with cross-attention"):
        planned(family, BAND)
