from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_models import Inputs, build, each_family, llava
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from vlalign_utils import VLM
from vlalign_utils.tuning.lora import adapted, parameter_count


def wrapped(vlm: VLM) -> set[str]:
    return {name for name, module in vlm.model.named_modules() if isinstance(module, BaseTunerLayer)}


def linear_names(vlm: VLM, layers: list[int]) -> set[str]:
    prefixes = tuple(f"{vlm.anatomy.name}.{k}." for k in layers)
    return {n for n, m in vlm.model.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefixes)}


def everything(vlm: VLM) -> dict[str, Any]:
    """Whatever a model is made of, by identity where it has one."""
    parameters = dict(vlm.model.named_parameters())
    return {
        "modules": {name: id(module) for name, module in vlm.model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in vlm.model.named_modules()},
        "training": {name: module.training for name, module in vlm.model.named_modules()},
        "parameters": {name: (id(p), p._version, p.dtype) for name, p in parameters.items()},
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "keys": list(vlm.model.state_dict()),
    }


def bits(vlm: VLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def spread(new: list[nn.Parameter]) -> None:
    """Give B values, so that adapters do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for b in new[1::2]:
            b.normal_(0, 0.3, generator=generator)


def by_hand(model: nn.Module, new: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """Logits of a model without adapters whose weights are W + 2 B A: another way to the same numbers."""
    weights = dict(model.named_parameters())
    for name in {n.split(".lora_")[0] for n in new}:
        a, b = (new[f"{name}.lora_{x}.default.weight"] for x in "AB")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + 2 * b @ a
    return functional_call(model, weights, (), {**inputs, "use_cache": False}).logits


@each_family
def test_the_linear_modules_of_the_layers_are_wrapped_and_no_others(family: str) -> None:
    vlm, inputs = build(family)
    logits = vlm.record(**inputs).logits
    before, weights = everything(vlm), bits(vlm)  # a first forward leaves marks of transformers' own
    expected = linear_names(vlm, [1, 2])
    with adapted(vlm, [1, 2], rank=2) as new:
        assert wrapped(vlm) == expected
        assert sum(p.numel() for p in new) == sum(2 * sum(weights[f"{n}.weight"].shape) for n in expected)
        assert torch.equal(vlm.record(**inputs).logits, logits)
        spread(new)
        assert not torch.equal(vlm.record(**inputs).logits, logits)
    assert everything(vlm) == before
    assert all(torch.equal(weights[name], value) for name, value in vlm.model.state_dict().items())
    assert torch.equal(vlm.record(**inputs).logits, logits)


@pytest.mark.parametrize("rank", [1, 3])
def test_parameters_are_counted_without_wrapping(rank: int) -> None:
    vlm, _ = build("llava")
    before = everything(vlm)
    counts = {k: parameter_count(vlm, [k], rank) for k in range(4)}
    # q, o: 32 -> 32; k, v: 32 -> 16; gate, up: 32 -> 64; down: 64 -> 32.
    assert counts == dict.fromkeys(range(4), rank * (2 * 64 + 2 * 48 + 3 * 96))
    assert parameter_count(vlm, [3, 0, 3], rank) == 2 * counts[0]
    assert everything(vlm) == before
    with adapted(vlm, [3, 0, 3], rank) as new:
        assert sum(p.numel() for p in new) == 2 * counts[0]


@pytest.mark.parametrize(
    ("part", "modules", "widths"),
    [("attention", {"q", "k", "v", "o"}, 224), ("MLP", {"gate", "up", "down"}, 288)],
)
def test_adapters_of_one_part_are_in_its_modules_alone(part: str, modules: set[str], widths: int) -> None:
    vlm, _ = build("llava")
    before = everything(vlm)
    with adapted(vlm, [1, 2], 3, part=part) as new:
        ends = {name.rsplit(".", 1)[-1].removesuffix("_proj") for name in wrapped(vlm)}
        assert ends == modules
        assert {name.split(".layers.")[1][0] for name in wrapped(vlm)} == {"1", "2"}
        # q, o: 32 -> 32; k, v: 32 -> 16; gate, up: 32 -> 64; down: 64 -> 32.
        assert sum(p.numel() for p in new) == 2 * 3 * widths
    assert parameter_count(vlm, [1, 2], 3, part) == 2 * 3 * widths
    assert everything(vlm) == before


@pytest.mark.parametrize("family", ["llava", "mllama", "gemma4"])
def test_outputs_and_gradients_are_those_of_a_sum_of_weights(family: str) -> None:
    vlm, inputs = build(family)
    model, layers = deepcopy(vlm.model), [1, 3]
    with adapted(vlm, layers, rank=3) as new:
        spread(new)
        held = {id(p) for p in new}
        named = {name: p for name, p in vlm.model.named_parameters() if id(p) in held}
        logits = vlm.model(**inputs, use_cache=False).logits
        expected = by_hand(model, named, inputs)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(6))
        gradients = torch.autograd.grad((logits * direction).sum(), new)
        plain = torch.autograd.grad((expected * direction).sum(), new)
    for got, want in zip(gradients, plain, strict=True):
        assert got.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_one_module_gives_w_x_and_twice_b_a_x() -> None:
    vlm, _ = build("llava")
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
    weight = vlm.layers[2].mlp.up_proj.weight
    with adapted(vlm, [2], rank=4) as new:
        spread(new)
        wrapper = vlm.layers[2].mlp.up_proj
        pairs = list(zip(new[::2], new[1::2], strict=True))
        ((a, b),) = [pair for pair in pairs if any(p is pair[0] for p in wrapper.parameters())]
        assert a.shape == (4, 32)
        assert b.shape == (64, 4)
        torch.testing.assert_close(wrapper(x), x @ weight.T + 2.0 * x @ a.T @ b.T)


@each_family
def test_replays_drive_and_train_the_adapters(family: str) -> None:
    vlm, inputs = build(family)
    with adapted(vlm, [2, 3], rank=2) as new:
        spread(new)
        run = vlm.record(**inputs)
        vlm.self_test(run)
        hidden = run.resid[2].clone().requires_grad_(True)
        full = vlm.model(**inputs, use_cache=False).logits
        resumed = vlm.replay(run, start=2, hidden=hidden).logits
        assert torch.equal(full, resumed)
        plain, cached = (torch.autograd.grad(x.sum(), new, retain_graph=True) for x in (full, resumed))
        for a, b in zip(plain, cached, strict=True):
            assert torch.equal(a, b)
            assert a.abs().max() > 0
        assert torch.autograd.grad(resumed.sum(), hidden)[0].abs().max() > 0


def test_a_run_from_before_is_resumed_with_adapters_and_without() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    with adapted(vlm, [2], rank=2) as new:
        assert torch.equal(vlm.replay(run, start=2).logits, run.logits)
        spread(new)
        changed = vlm.replay(run, start=2).logits
        assert torch.equal(changed, vlm.model(**inputs, use_cache=False).logits)
    assert not torch.equal(changed, run.logits)
    vlm.self_test(run)


def test_seeds_decide_a_and_leave_the_callers_draws_alone() -> None:
    def first(seed: int) -> list[Tensor]:
        vlm, _ = build("llava")
        with adapted(vlm, [1, 2], rank=2, seed=seed) as new:
            assert all(not b.any() for b in new[1::2])
            return [a.detach().clone() for a in new[::2]]

    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    one = first(1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one, first(1), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(one, first(2), strict=True))


def test_a_default_device_changes_nothing() -> None:
    vlm, _ = build("llava")
    with adapted(vlm, [1], rank=2) as new:
        expected = [p.detach().clone() for p in new]
    with torch.device("meta"), adapted(vlm, [1], rank=2) as new:
        assert all(torch.equal(a, b) for a, b in zip(new, expected, strict=True))


def test_what_has_a_gradient_is_left_to_the_caller() -> None:
    vlm, _ = build("llava")
    for k, parameter in enumerate(vlm.model.parameters()):
        parameter.requires_grad_(k % 3 == 0)
    before = everything(vlm)
    asked = [(p, p.requires_grad) for p in vlm.model.parameters()]
    with adapted(vlm, [1, 2], rank=2) as new:
        assert all(p.requires_grad for p in new)
        assert [p.requires_grad for p, _ in asked] == [wanted for _, wanted in asked]
        vlm.model.requires_grad_(False)
    assert everything(vlm) == before


def test_everything_comes_back_after_an_error_inside() -> None:
    vlm, inputs = build("llava")
    logits = vlm.record(**inputs).logits
    before = everything(vlm)

    def fail() -> None:
        with adapted(vlm, [0, 3], rank=2) as new:
            spread(new)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert everything(vlm) == before
    assert torch.equal(vlm.record(**inputs).logits, logits)


def test_everything_comes_back_after_an_error_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, _ = build("llava")
    before = everything(vlm)
    calls: list[nn.Module] = []
    create = LoraModel._create_new_module

    def fail(config: Any, name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        calls.append(target)
        if len(calls) == 10:
            raise RuntimeError("no such kind of module")
        return create(config, name, target, **kwargs)

    monkeypatch.setattr(LoraModel, "_create_new_module", staticmethod(fail))
    with pytest.raises(RuntimeError, match="no such kind"), adapted(vlm, [1, 2], rank=2):
        pass
    assert len(calls) == 10
    assert everything(vlm) == before


def test_half_precision_models_get_adapters_in_float32() -> None:
    vlm, inputs = build("llava")
    vlm.model.to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    logits = vlm.record(**inputs).logits
    with adapted(vlm, [1], rank=2) as new:
        assert {p.dtype for p in new} == {torch.float32}
        run = vlm.record(**inputs)
        assert torch.equal(run.logits, logits)
        vlm.replay(run, start=1).logits.float().sum().backward()
        assert all(b.grad is not None and b.grad.any() for b in new[1::2])


def test_adapters_can_be_put_in_again_and_again() -> None:
    vlm, _ = build("llava")
    before = everything(vlm)
    for layers in ([0], [3, 1], [0, 1, 2, 3]):
        expected = linear_names(vlm, layers)
        with adapted(vlm, layers, rank=1):
            assert wrapped(vlm) == expected
        assert everything(vlm) == before


def test_transposed_linear_modules_are_wrapped_too() -> None:
    vlm, inputs = build("llava")
    plain = vlm.layers[1].mlp.up_proj
    transposed = Conv1D(64, 32)
    with torch.no_grad():
        transposed.weight.copy_(plain.weight.T)
    vlm.layers[1].mlp.up_proj = transposed
    model = deepcopy(vlm.model)
    model.model.language_model.layers[1].mlp.up_proj = plain
    with adapted(vlm, [1], rank=2) as new:
        assert f"{vlm.anatomy.name}.1.mlp.up_proj" in wrapped(vlm)
        assert sum(p.numel() for p in new) == 2 * (2 * 64 + 2 * 48 + 3 * 96)
        spread(new)
        held = {id(p) for p in new}
        named = {name: p for name, p in vlm.model.named_parameters() if id(p) in held}
        expected = by_hand(model, named, inputs)
        logits = vlm.model(**inputs, use_cache=False).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert parameter_count(vlm, [1], 2) == sum(p.numel() for p in new)
    assert vlm.layers[1].mlp.up_proj is transposed


class Packed(nn.Linear):
    """As quantised modules are: weights in another shape, and a forward from elsewhere than the model."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        packed = plain.weight.detach().to(torch.bfloat16).view(torch.uint8).reshape(-1, 1)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.weight.flatten().view(torch.bfloat16).reshape(self.out_features, self.in_features)
        return x @ whole.to(x.dtype).T


def test_packed_linear_modules_are_wrapped_and_counted_by_their_widths() -> None:
    vlm, inputs = build("llava")
    vlm.layers[1].mlp.up_proj = Packed(vlm.layers[1].mlp.up_proj)
    logits = vlm.record(**inputs).logits
    before = everything(vlm)
    with adapted(vlm, [1], rank=2) as new:
        assert sum(p.numel() for p in new) == 2 * (2 * 64 + 2 * 48 + 3 * 96)
        assert {p.dtype for p in new} == {torch.float32}
        assert torch.equal(vlm.record(**inputs).logits, logits)
        vlm.model(**inputs, use_cache=False).logits.sum().backward()
        assert all(b.grad is not None and b.grad.any() for b in new[1::2])
    assert parameter_count(vlm, [1], 2) == sum(p.numel() for p in new)
    assert everything(vlm) == before


class Bare(nn.Module):
    """A layer whose only linear module has a forward of the model's own, as routers do."""

    class Router(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), x

    def __init__(self) -> None:
        super().__init__()
        self.router = self.Router(4, 2)


def test_a_layer_without_linear_modules_is_refused_by_name() -> None:
    vlm, _ = build("llava")
    vlm.layers[2] = Bare()
    for refuse in (lambda: adapted(vlm, [1, 2], 2).__enter__(), lambda: parameter_count(vlm, [2], 2)):
        with pytest.raises(ValueError, match=r"layer 2 \(Bare\) has no linear module"):
            refuse()
    assert not wrapped(vlm)


@pytest.mark.parametrize(
    ("layers", "rank", "error", "message"),
    [
        ([0, 4], 2, IndexError, r"layer is 4, expected 0\.\.3"),
        ([-1], 2, IndexError, r"layer is -1, expected 0\.\.3"),
        ([1], 0, ValueError, "rank is 0, expected at least 1"),
        ([], 2, ValueError, "layers is empty"),
    ],
)
def test_what_does_not_fit_is_refused(
    layers: list[int], rank: int, error: type[Exception], message: str
) -> None:
    vlm, _ = build("llava")
    before = everything(vlm)
    for refuse in (
        lambda: adapted(vlm, layers, rank).__enter__(),
        lambda: parameter_count(vlm, layers, rank),
    ):
        with pytest.raises(error, match=message):
            refuse()
    assert everything(vlm) == before


def test_a_model_with_adapters_is_refused() -> None:
    vlm, _ = build("llava")
    with adapted(vlm, [1], rank=2), pytest.raises(ValueError, match=r"leave the block .* merge_and_unload"):
        parameter_count(vlm, [2], 2)
    other = LoraConfig(r=2, target_modules=["q_proj"])
    inject_adapter_in_model(other, vlm.model)
    before = everything(vlm)
    with pytest.raises(ValueError, match=r"has an adapter already, in model\.vision_tower"):
        adapted(vlm, [1], rank=2).__enter__()
    assert everything(vlm) == before


def test_weights_that_are_not_in_memory_are_refused() -> None:
    with torch.device("meta"):
        vlm = VLM(llava()[1](llava()[0]))
    assert parameter_count(vlm, [1], 2) == 2 * (2 * 64 + 2 * 48 + 3 * 96)
    with pytest.raises(ValueError, match="weights of layer 1 are offloaded"):
        adapted(vlm, [1], rank=2).__enter__()


def test_peft_s_own_choice_by_layer_number_would_reach_the_vision_tower() -> None:
    """The reason for names: should this fail, peft has changed and the names may go."""
    vlm, _ = build("llava")
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0, 1], layers_pattern="layers")
    inject_adapter_in_model(config, vlm.model)
    assert any("vision_tower" in name for name in wrapped(vlm))
