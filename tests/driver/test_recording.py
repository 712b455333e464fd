"""Record, replay, resume, stop: exact on every family, and nothing runs that should not."""

from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import Inputs, build, each_family, image_noise
from torch import Tensor, nn

from vlalign_utils import VLM, Knockout, Patch


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def calls_of(modules: dict[str, nn.Module], hooks: ExitStack) -> Counter[str]:
    """Counts forwards that really compute: a recorded answer replaces `forward`, so count inside it."""
    counts: Counter[str] = Counter()
    for name, module in modules.items():
        inner = next(m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding))
        hooks.callback(inner.register_forward_hook(lambda *_, name=name: counts.update([name])).remove)
    return counts


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_replay_is_exact_from_every_layer(family: str, attention: str) -> None:
    vlm, inputs = build(family, attention)
    run = vlm.record(**inputs)
    with torch.no_grad():
        plain = vlm.model(**inputs, use_cache=False).logits
    assert plain.std() > 0.5  # weights that matter
    assert difference(run.logits, plain) == 0
    for start in range(vlm.n_layers + 1):
        replay = vlm.replay(run, start=start)
        assert difference(replay.logits, run.logits) == 0
        assert all(torch.equal(a, b) for a, b in zip(replay.resid, run.resid, strict=True))
    vlm.self_test(run)


@each_family
def test_resume_from_an_own_hidden_state(family: str) -> None:
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    for start in range(vlm.n_layers + 1):
        hidden = vlm.prefix(inputs, stop=start)
        assert torch.equal(hidden, run.resid[start])
        assert difference(vlm.replay(run, start=start, hidden=hidden).logits, run.logits) == 0
        other = vlm.replay(run, start=start, hidden=hidden.flip(0))
        assert torch.equal(other.resid[start], hidden.flip(0))
        assert difference(other.logits, run.logits) > 0.1


@each_family
def test_gradients_from_a_cached_input_are_the_full_ones(family: str) -> None:
    vlm, inputs = build(family)
    start = 2
    trained = [w for layer in vlm.layers[start:] for w in layer.parameters()]
    vlm.model.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)

    def gradients(logits: Tensor) -> list[Tensor | None]:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), logits.new_ones(26).long())
        return list(torch.autograd.grad(loss, trained, allow_unused=True))

    full = gradients(vlm.model(**inputs, use_cache=False).logits)
    run = vlm.record(stop=start, **inputs)
    hidden = vlm.prefix(inputs, stop=start).requires_grad_(True)
    cached = gradients(vlm.replay(run, start=start, hidden=hidden).logits)
    for a, b in zip(full, cached, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert sum(a is not None and a.abs().max() > 0 for a in full) > 10
    (to_hidden,) = torch.autograd.grad(vlm.replay(run, start=start, hidden=hidden).logits.sum(), hidden)
    assert to_hidden.abs().max() > 0


def test_replay_follows_the_callers_gradient_mode() -> None:
    vlm, inputs = build("llava")
    with torch.inference_mode():
        run = vlm.record(**inputs)
    assert not run.logits.requires_grad
    assert vlm.replay(run).logits.requires_grad
    with torch.no_grad():
        assert not vlm.replay(run).logits.requires_grad


def test_replay_runs_only_what_it_must() -> None:
    vlm, inputs = build("llava")
    parts = {str(k): layer for k, layer in enumerate(vlm.layers)}
    parts |= {"vision": vlm.model.model.vision_tower, "connector": vlm.model.model.multi_modal_projector}
    parts |= {"head": vlm.model.lm_head}
    with ExitStack() as hooks:
        counts = calls_of(parts, hooks)
        run = vlm.record(**inputs)
        assert counts == dict.fromkeys(parts, 1)
        counts.clear()
        vlm.replay(run)
        assert counts == {"0": 1, "1": 1, "2": 1, "3": 1, "head": 1}
        counts.clear()
        vlm.replay(run, start=3)
        assert counts == {"3": 1, "head": 1}
        counts.clear()
        vlm.prefix(inputs, stop=2)
        assert counts == {"vision": 1, "connector": 1, "0": 1, "1": 1}


# peft 0.x asks transformers for an attribute by its old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft_are_driven_and_trained() -> None:
    vlm, inputs = build("llava")
    layers = LoraConfig(
        r=2, target_modules=r".*language_model\.layers\.[23]\..*q_proj", init_lora_weights=False
    )
    tuned = VLM(get_peft_model(vlm.model, layers))
    run = tuned.record(**inputs)
    tuned.self_test(run)
    replay = tuned.replay(run, start=2)
    adapters = [w for w in tuned.model.parameters() if w.requires_grad]
    full = tuned.model(**inputs, use_cache=False).logits
    for a, b in zip(*(torch.autograd.grad(x.sum(), adapters) for x in (full, replay.logits)), strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() > 0


def test_resid_is_the_stream_that_transformers_reports() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    with torch.no_grad():
        native = vlm.model(**inputs, output_hidden_states=True).hidden_states
        normed = vlm.model.model.language_model.norm(run.resid[-1])
    assert len(run.resid) == vlm.n_layers + 1 == len(native)
    assert all(torch.equal(a, b) for a, b in zip(run.resid[:-1], native[:-1], strict=True))
    assert torch.equal(normed, native[-1])


def test_left_padding_leaves_the_rows_as_they_are_alone() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    alone = vlm.record(
        **{name: value[:1, 2:] for name, value in inputs.items() if name != "pixel_values"},
        pixel_values=inputs["pixel_values"][:1],
    )
    torch.testing.assert_close(run.logits[:1, 2:], alone.logits, rtol=1e-4, atol=1e-4)


@each_family
def test_bfloat16_is_exact_too(family: str) -> None:
    vlm, inputs = build(family)
    vlm.model.to(torch.bfloat16)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    run = vlm.record(**inputs)
    assert run.logits.dtype == torch.bfloat16
    vlm.self_test(run)


def test_a_cross_attention_model_skips_layers_without_an_image() -> None:
    vlm, inputs = build("mllama")
    run = vlm.record(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert torch.equal(run.resid[1], run.resid[2])
    vlm.self_test(run)
    everything = torch.ones(run.grid, dtype=torch.bool)
    patch = Patch(layer=1, mask=everything, value=run.resid[1] * 2)
    same = vlm.replay(run, start=2, hidden=run.resid[2] * 2)
    assert torch.equal(vlm.replay(run, edits=[patch]).logits, same.logits)


def test_outputs_changed_in_place_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, inputs = build("llava")
    inner = vlm.model.model
    features = inner.get_image_features

    def doubled(*args: object, **kwargs: object) -> object:
        output = features(*args, **kwargs)
        output.last_hidden_state.mul_(2)
        for image in output.pooler_output:
            image.mul_(2)
        return output

    monkeypatch.setattr(inner, "get_image_features", doubled)
    run = vlm.record(**inputs)
    assert "model.multi_modal_projector" not in run.module_outputs
    vlm.self_test(run)


def test_the_model_is_left_as_it_was() -> None:
    vlm, inputs = build("llava")
    vlm.model.train()
    vlm.model(**inputs)  # transformers adds hooks of its own the first time
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in vlm.model.modules()]
    before = {name: set(vars(module)) for name, module in vlm.model.named_modules()}
    run = vlm.record(**inputs)
    vlm.prefix(inputs, stop=2)
    vlm.replay(run, start=2)
    mask = torch.ones(run.grid, dtype=torch.bool)
    with pytest.raises(ValueError, match="without any key"):
        vlm.replay(run, start=1, edits=[Knockout(first=1, last=2, query=mask, key=mask)])
    assert {name: set(vars(module)) for name, module in vlm.model.named_modules()} == before
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in vlm.model.modules()] == hooks
    assert vlm.model.training


def test_a_forward_of_its_own_on_a_module_is_put_back() -> None:
    vlm, inputs = build("llava")
    layer = vlm.layers[0]
    layer.forward = own = layer.forward  # as accelerate does
    run = vlm.record(**inputs)
    vlm.replay(run, start=2)
    assert vars(layer)["forward"] is own


def test_self_test_refuses_a_model_that_cannot_be_driven() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    with torch.no_grad():
        vlm.model.lm_head.weight.mul_(1.01)
    with pytest.raises(RuntimeError, match="differs from the recorded logits"):
        vlm.self_test(run)


def test_a_layer_that_runs_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, inputs = build("llava")
    first = vlm.layers[0]
    vlm.layers[1].register_forward_pre_hook(
        lambda m, args, kwargs: (first(*args, **kwargs),), with_kwargs=True
    )
    with pytest.raises(RuntimeError, match="layer 0 runs more than once"):
        vlm.record(**inputs)


@pytest.fixture
def recorded() -> tuple[VLM, Inputs]:
    return build("llava")


def test_errors_of_record(recorded: tuple[VLM, Inputs], checks_off: None) -> None:
    vlm, inputs = recorded
    with pytest.raises(TypeError, match="'pixel_value', did you mean 'pixel_values'"):
        vlm.record(input_ids=inputs["input_ids"], pixel_value=image_noise(2, 3, 16, 16))
    with pytest.raises(TypeError, match=r"does not take the input 'zzz'; it takes .*input_ids"):
        vlm.record(**inputs, zzz=1)
    with pytest.raises(TypeError, match="use_cache"):
        vlm.record(**inputs, use_cache=True)
    with pytest.raises(IndexError, match=r"stop is 5, expected 0\.\.4"):
        vlm.record(stop=5, **inputs)
    with pytest.raises(TypeError, match="stop must be an integer"):
        vlm.prefix(inputs, stop="2")  # type: ignore[arg-type]


def test_errors_of_replay(recorded: tuple[VLM, Inputs], checks_off: None) -> None:
    vlm, inputs = recorded
    run = vlm.record(**inputs)
    for start in (-1, 5):
        with pytest.raises(IndexError, match=rf"start is {start}, expected 0\.\.4"):
            vlm.replay(run, start=start)
    for wrong in (1.0, True, "1"):
        with pytest.raises(TypeError, match="start must be an integer"):
            vlm.replay(run, start=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hidden has shape \[2, 13, 32\], layer 1 takes \[2, 14, 32\]"):
        vlm.replay(run, start=1, hidden=run.resid[1][:, 1:])
    stopped = vlm.record(stop=2, **inputs)
    with pytest.raises(ValueError, match="stopped at layer 2 and has no logits"):
        _ = stopped.logits
    with pytest.raises(IndexError, match=r"start is 3, expected 0\.\.2"):
        vlm.replay(stopped, start=3)
    assert torch.equal(vlm.replay(stopped, start=2).logits, run.logits)
