"""Patch, FreezeTokens, Knockout, CrossOff against naive implementations, and their errors."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tiny_models import Inputs, build, each_family, image_noise
from torch import Tensor

from vlalign_utils import VLM, CrossOff, FreezeTokens, Knockout, Patch, Revert, Run


@pytest.fixture(scope="module")
def llava() -> tuple[VLM, Inputs, Run]:
    vlm, inputs = build("llava")
    return vlm, inputs, vlm.record(**inputs)


def at(run: Run, *tokens: int) -> Tensor:
    """Mask of the given tokens in every row."""
    mask = torch.zeros(run.grid, dtype=torch.bool)
    mask[:, list(tokens)] = True
    return mask


def image_and_text(vlm: VLM, inputs: Inputs) -> tuple[Tensor, Tensor]:
    image = vlm.image_mask(inputs)
    assert image is not None
    return image, ~image & inputs["attention_mask"].bool()


# --- Patch


@each_family
def test_patching_what_is_there_changes_nothing(family: str) -> None:
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    mask = torch.rand(run.grid, generator=torch.Generator().manual_seed(0)) < 0.5
    for layer in range(vlm.n_layers + 1):
        patch = Patch(layer=layer, mask=mask, value=run.resid[layer])
        assert torch.equal(vlm.replay(run, edits=[patch]).logits, run.logits)


@each_family
def test_patching_every_token_swaps_the_run(family: str) -> None:
    """All positions from another input: from there on it is the other input's forward."""
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    everything = torch.ones(run.grid, dtype=torch.bool)
    for layer in range(vlm.n_layers + 1):
        value = torch.randn(run.resid[layer].shape, generator=torch.Generator().manual_seed(layer))
        swapped = vlm.replay(run, edits=[Patch(layer=layer, mask=everything, value=value)])
        assert torch.equal(swapped.resid[layer], value)
        assert torch.equal(swapped.logits, vlm.replay(run, start=layer, hidden=value).logits)


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_patch_equals_a_hook_on_the_full_model(llava: tuple[VLM, Inputs, Run], layer: int) -> None:
    vlm, inputs, run = llava
    value = torch.randn(32, generator=torch.Generator().manual_seed(5))

    def overwrite(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[:, 6] = value
        return hidden

    if layer < vlm.n_layers:
        hook = vlm.layers[layer].register_forward_pre_hook(lambda m, args: (overwrite(args[0]), *args[1:]))
    else:
        hook = vlm.layers[-1].register_forward_hook(lambda m, args, output: overwrite(output))
    with torch.no_grad():
        naive = vlm.model(**inputs, use_cache=False).logits
    hook.remove()
    patched = vlm.replay(run, edits=[Patch(layer=layer, mask=at(run, 6), value=value)])
    assert torch.equal(patched.logits, naive)
    # Attention is causal: nothing before the patch can change, everything after it does.
    assert torch.equal(patched.logits[:, :6], run.logits[:, :6])
    reached = patched.logits.ne(run.logits).any(-1)
    assert reached[:, 6].all()
    assert reached[:, 7:].all() == (layer < vlm.n_layers)
    started = vlm.replay(run, start=layer, edits=[Patch(layer=layer, mask=at(run, 6), value=value)])
    assert torch.equal(started.logits, naive)


def test_patch_values_of_each_shape_agree(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    mask = at(run, 3, 5)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(6))
    results = [
        vlm.replay(run, edits=[Patch(layer=1, mask=mask, value=value)]).logits
        for value in (
            vector,
            vector.expand(1, 32),
            vector.expand(4, 32),
            vector.expand(2, 14, 32),
            vector.double(),
        )
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])
    rows = torch.arange(4.0)[:, None].expand(4, 32)
    stream = vlm.replay(run, edits=[Patch(layer=1, mask=mask, value=rows)]).resid[1]
    assert stream[mask][:, 0].tolist() == [0, 1, 2, 3]
    assert torch.equal(stream[~mask], run.resid[1][~mask])


def test_gradients_reach_a_patched_value(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    value = run.resid[2][:, 6].clone().requires_grad_(True)
    logits = vlm.replay(run, start=2, edits=[Patch(layer=2, mask=at(run, 6), value=value)]).logits
    (gradient,) = torch.autograd.grad(logits[:, -1, 7].sum(), value)
    step = torch.zeros_like(value)
    step[0, 3] = 1e-2
    nudged = [
        vlm.replay(run, edits=[Patch(layer=2, mask=at(run, 6), value=(value + sign * step).detach())]).logits[
            0, -1, 7
        ]
        for sign in (1, -1)
    ]
    torch.testing.assert_close((nudged[0] - nudged[1]) / 2e-2, gradient[0, 3], rtol=2e-2, atol=1e-3)


# --- FreezeTokens


def naive_freeze(vlm: VLM, run: Run, first: int, last: int, mask: Tensor) -> Tensor:
    """A Llama stack by hand: the masked rows of every layer's output are thrown away."""
    stack = vlm.model.model.language_model
    tokens = run.grid[1]
    position_ids = torch.arange(tokens)[None]
    allowed = (
        torch.ones(tokens, tokens, dtype=torch.bool).tril()
        & run.inputs["attention_mask"].bool()[:, None, None]
    )
    rotary = stack.rotary_emb(run.resid[0], position_ids)
    hidden = run.resid[0]
    for k, layer in enumerate(stack.layers):
        after = layer(hidden, attention_mask=allowed, position_embeddings=rotary, position_ids=position_ids)
        hidden = torch.where(mask[..., None], hidden, after) if first <= k <= last else after
    return vlm.model.lm_head(stack.norm(hidden))


@pytest.mark.parametrize(("first", "last"), [(0, 3), (0, 0), (1, 2), (3, 3)])
def test_freezing_equals_a_loop_over_the_layers(
    llava: tuple[VLM, Inputs, Run], first: int, last: int
) -> None:
    vlm, inputs, run = llava
    image, _ = image_and_text(vlm, inputs)
    with torch.no_grad():
        naive = naive_freeze(vlm, run, first, last, image)
        frozen = vlm.replay(run, edits=[FreezeTokens(first=first, last=last, mask=image)])
        resumed = vlm.replay(run, start=first, edits=[FreezeTokens(first=first, last=last, mask=image)])
    assert torch.equal(frozen.logits, naive)
    assert torch.equal(resumed.logits, naive)
    assert not torch.equal(frozen.logits, run.logits)


@each_family
def test_frozen_tokens_stay_and_thaw(family: str) -> None:
    """Also where the model itself changes tokens between layers (DeepStack)."""
    vlm, inputs = build(family)
    run = vlm.record(**inputs)
    mask = at(run, 4, 5, 9)
    resid = vlm.replay(run, edits=[FreezeTokens(first=1, last=2, mask=mask)]).resid
    assert torch.equal(resid[1], run.resid[1])
    assert torch.equal(resid[2][mask], run.resid[1][mask])
    assert torch.equal(resid[3][mask], run.resid[1][mask])
    assert not torch.equal(resid[4][mask], run.resid[1][mask])
    assert not torch.equal(resid[2][~mask], run.resid[1][~mask])


# --- Knockout


def attention_weights(vlm: VLM, run: Run, edits: list[Any]) -> list[Tensor]:
    """Weights [batch, heads, tokens, tokens] that eager attention used in each layer of a replay."""
    weights: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in vlm.layers:
            for module in layer.modules():
                if hasattr(module, "is_causal"):
                    handle = module.register_forward_hook(lambda m, args, output: weights.append(output[1]))
                    hooks.callback(handle.remove)
        with torch.no_grad():
            vlm.replay(run, edits=edits)
    return weights


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "gemma4"])
def test_knockout_cuts_exactly_the_pairs_in_the_window(name: str) -> None:
    vlm, inputs = build(name, "eager")
    run = vlm.record(**inputs)
    image, text = image_and_text(vlm, inputs)
    before = attention_weights(vlm, run, [])
    after = attention_weights(vlm, run, [Knockout(first=1, last=2, query=text, key=image)])
    pairs = (text[:, :, None] & image[:, None, :])[:, None].expand_as(before[0])
    assert len(after) == 4
    for k, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old[pairs].max() > 0.01
        assert (new[pairs] == 0).all() if k in (1, 2) else torch.equal(new[pairs] > 0, old[pairs] > 0)
        real = inputs["attention_mask"].bool()[:, None].expand(2, new.shape[1], -1)
        torch.testing.assert_close(new.sum(-1)[real], torch.ones_like(new.sum(-1)[real]))
        assert (new[~pairs] > 0).equal(old[~pairs] > 0)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "gemma4", "mllama", "idefics"])
def test_eager_and_sdpa_agree_under_knockout(name: str) -> None:
    logits = []
    for attention in ("eager", "sdpa"):
        vlm, inputs = build(name, attention)
        run = vlm.record(**inputs)
        replay = vlm.replay(
            run, edits=[Knockout(first=1, last=2, query=at(run, 9, 13), key=at(run, 4, 5, 7))]
        )
        assert (replay.logits - run.logits)[:, 9].abs().max() > 1e-2
        assert torch.equal(replay.logits[:, 3], run.logits[:, 3]) or name == "gemma3"
        logits.append(replay.logits[inputs["attention_mask"].bool()])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "gemma4"])
def test_with_all_image_access_cut_pixels_change_nothing(name: str, attention: str) -> None:
    vlm, inputs = build(name, attention)
    image, text = image_and_text(vlm, inputs)
    other = {**inputs, "pixel_values": image_noise(*inputs["pixel_values"].shape) * 2 + 1}
    cut = Knockout(first=0, last=vlm.n_layers - 1, query=~image, key=image)
    runs = [vlm.record(**inputs), vlm.record(**other)]
    a, b = (vlm.replay(run, edits=[cut]) for run in runs)
    assert a.hit == (0, 1, 2, 3)
    assert torch.equal(a.logits[text], b.logits[text])
    assert (runs[0].logits - runs[1].logits)[:, -1].abs().max() > 1e-2  # without the cut they do matter


def test_knockouts_add_up(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    one = [Knockout(first=1, last=2, query=at(run, 9), key=at(run, 4, 5))]
    two = [Knockout(first=1, last=2, query=at(run, 9), key=at(run, key)) for key in (4, 5)]
    assert torch.equal(vlm.replay(run, edits=one).logits, vlm.replay(run, edits=two).logits)
    assert vlm.replay(run, edits=one).hit == (1, 2)
    assert vlm.replay(run).hit == ()


def test_a_query_must_keep_a_key(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, inputs, run = llava
    everything = torch.ones(run.grid, dtype=torch.bool)
    with pytest.raises(ValueError, match="leaves token 2 of row 0 without any key to attend to"):
        vlm.replay(run, edits=[Knockout(first=1, last=1, query=everything, key=everything)])
    # The padding of row 0 sees nothing from the start; that is not the knockout's doing.
    padding = ~inputs["attention_mask"].bool()
    replay = vlm.replay(run, edits=[Knockout(first=1, last=1, query=everything, key=padding)])
    torch.testing.assert_close(replay.logits[~padding], run.logits[~padding], rtol=1e-5, atol=1e-5)


def test_knockout_of_a_model_with_flash_attention_runs_with_sdpa(caplog: pytest.LogCaptureFixture) -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    edits = [Knockout(first=2, last=2, query=at(run, 9), key=at(run, 4))]
    expected = vlm.replay(run, edits=edits).logits
    vlm.layers[2].self_attn.config._attn_implementation = "flash_attention_2"
    with caplog.at_level("INFO", logger="vlalign"):
        assert torch.equal(vlm.replay(run, edits=edits).logits, expected)
    assert "flash_attention_2 cannot take a mask over query-key pairs" in caplog.text
    assert vlm.layers[2].self_attn.config._attn_implementation == "flash_attention_2"


def test_knockout_is_not_trained_through_with_checkpointing(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    vlm.model.train()
    getattr(vlm.model, "activation_checkpointing_enable", vlm.model.gradient_checkpointing_enable)()
    edits = [Knockout(first=2, last=2, query=at(run, 9), key=at(run, 4))]
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        vlm.replay(run, edits=edits)
    with torch.no_grad():
        vlm.replay(run, edits=edits)


# --- Revert


def other_stage() -> VLM:
    vlm, _ = build("llava")
    with torch.no_grad():
        for parameter in vlm.layers.parameters():
            parameter.mul_(0.9)
    return vlm


@torch.no_grad()
def test_revert_equals_a_model_with_those_weights(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, inputs, run = llava
    before = other_stage()
    mixed, _ = build("llava")
    for k in (1, 2):
        mixed.layers[k].load_state_dict(before.layers[k].state_dict())
    expected = mixed.model(**inputs).logits
    edits = [Revert(1, 2, before.layers)]
    for start in (0, 1):
        assert torch.equal(vlm.replay(run, start=start, edits=edits).logits, expected)
    assert torch.equal(vlm.replay(run).logits, run.logits)
    sets = [[Revert(k, k, before.layers)] for k in range(4)]
    for k, logits in vlm.replays(run, sets):
        torch.testing.assert_close(logits, vlm.replay(run, edits=sets[k]).logits, rtol=1e-5, atol=1e-5)


def test_revert_refuses_what_is_not_another_stage(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    with pytest.raises(ValueError, match="the model's own"):
        vlm.replay(run, edits=[Revert(0, 1, vlm.layers)])
    with pytest.raises(ValueError, match=r"differ from the model's at layer 1: give those of another stage"):
        vlm.replay(run, edits=[Revert(1, 1, build("gemma3")[0].layers)])
    both = [Revert(1, 1, other_stage().layers), Knockout(1, 1, at(run, 9), at(run, 4))]
    with pytest.raises(ValueError, match="cannot be combined"):
        vlm.replay(run, edits=both)


# --- Knockout where it cannot work


def test_knockout_refuses_layers_that_mix_tokens_otherwise() -> None:
    vlm, inputs = build("lfm2_vl")
    run = vlm.record(**inputs)
    edit = {"query": at(run, 9), "key": at(run, 4)}
    with pytest.raises(ValueError, match="cannot block information in layer 2: Lfm2DecoderLayer"):
        vlm.replay(run, edits=[Knockout(first=1, last=3, **edit)])
    assert vlm.replay(run, edits=[Knockout(first=3, last=3, **edit)]).hit == (3,)


# --- CrossOff


@pytest.mark.parametrize(("name", "layers"), [("mllama", (1,)), ("idefics", (0, 2))])
def test_cross_off_cuts_the_image(name: str, layers: tuple[int, ...]) -> None:
    vlm, inputs = build(name)
    other = {**inputs, "pixel_values": inputs["pixel_values"] * 2 + 1}
    runs = [vlm.record(**inputs), vlm.record(**other)]
    assert not torch.equal(runs[0].logits, runs[1].logits)
    a, b = (vlm.replay(run, edits=[CrossOff(first=0, last=3)]) for run in runs)
    assert a.hit == layers
    assert torch.equal(a.logits, b.logits)
    partly = [vlm.replay(run, edits=[CrossOff(first=layers[0], last=layers[0])]).logits for run in runs]
    assert torch.equal(*partly) == (len(layers) == 1)


def test_cross_off_needs_cross_attention(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    with pytest.raises(ValueError, match=r"CrossOff\(first=0, last=3\) changed nothing: no cross-attention"):
        vlm.replay(run, edits=[CrossOff(first=0, last=3)])
    vlm, inputs = build("mllama")
    run = vlm.record(**inputs)
    with pytest.raises(ValueError, match=r"Knockout.*changed nothing: no self-attention"):
        vlm.replay(run, edits=[Knockout(first=1, last=1, query=at(run, 9), key=at(run, 4))])


# --- together, and errors


def test_edits_apply_in_the_order_given(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    mask, value = at(run, 6), torch.ones(32)
    patch, freeze = Patch(layer=1, mask=mask, value=value), FreezeTokens(first=1, last=2, mask=mask)
    patched_first = vlm.replay(run, edits=[patch, freeze]).resid
    assert all((patched_first[k][mask] == 1).all() for k in (1, 2, 3))
    frozen_first = vlm.replay(run, edits=[freeze, patch]).resid
    assert (frozen_first[1][mask] == 1).all()
    assert torch.equal(frozen_first[2][mask], run.resid[1][mask])
    cut = Knockout(first=1, last=3, query=at(run, 9), key=mask)
    both = vlm.replay(run, edits=[patch, cut])
    assert not torch.equal(both.logits, vlm.replay(run, edits=[patch]).logits)


ONE = torch.zeros(2, 14, dtype=torch.bool).index_fill(1, torch.tensor([6]), True)
ROW = torch.zeros(32)


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ([Patch(5, ONE, ROW)], IndexError, r"Patch layer is 5, expected 0\.\.4"),
        ([Patch(-1, ONE, ROW)], IndexError, r"Patch layer is -1, expected 0\.\.4"),
        ([FreezeTokens(0, 4, ONE)], IndexError, r"FreezeTokens last is 4, expected 0\.\.3"),
        ([FreezeTokens(2, 1, ONE)], IndexError, r"FreezeTokens last is 1, expected 2\.\.3"),
        ([Knockout(4, 4, ONE, ONE)], IndexError, r"Knockout first is 4, expected 0\.\.3"),
        ([CrossOff(0, 9)], IndexError, r"CrossOff last is 9, expected 0\.\.3"),
        ([Patch(1, ONE[:, 1:], ROW)], ValueError, r"mask has shape \[2, 13\], the run has .* \[2, 14\]"),
        ([Patch(1, ONE & False, ROW)], ValueError, "Patch mask selects no token"),
        ([Patch(1, ONE.long(), ROW)], TypeError, "Patch mask must be a boolean tensor .*, got torch.int64"),
        ([FreezeTokens(1, 1, ONE.float())], TypeError, "FreezeTokens mask must be a boolean tensor"),
        ([Knockout(1, 1, ONE, ONE & False)], ValueError, "Knockout key selects no token"),
        ([Knockout(1, 1, ONE[0], ONE)], ValueError, r"Knockout query has shape \[14\]"),
        ([Patch(1, ONE, torch.zeros(31))], ValueError, r"Patch value has shape \[31\], expected \[32\]"),
        ([Patch(1, ONE, torch.zeros(3, 32))], ValueError, r"expected \[32\], \[2, 32\] for one row per"),
        ([Patch(1, ONE, torch.zeros(2, 13, 32))], ValueError, r"or \[2, 14, 32\]"),
        ([Patch(1, ONE, torch.zeros(32).long())], TypeError, "floating-point"),
    ],
)
def test_errors(llava: tuple[VLM, Inputs, Run], edits: list[Any], error: type, message: str) -> None:
    vlm, _, run = llava
    with pytest.raises(error, match=message):
        vlm.replay(run, edits=edits)


@pytest.mark.usefixtures("checks_off")
def test_errors_of_type(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    wrong: list[tuple[Any, str]] = [
        (Patch(layer=1, mask=ONE, value=ROW), "edits must be a list of edits, got Patch"),
        ([{"layer": 1}], "edits must be Patch, FreezeTokens, Knockout, CrossOff or Revert, got dict"),
        ([Patch(layer="1", mask=ONE, value=ROW)], "Patch layer must be an integer, got '1'"),  # type: ignore[arg-type]
        ([FreezeTokens(first=1.0, last=2, mask=ONE)], "FreezeTokens first must be an integer"),  # type: ignore[arg-type]
        ([CrossOff(first=True, last=2)], "CrossOff first must be an integer"),
        ([Patch(layer=1, mask=[6], value=ROW)], "Patch mask must be a boolean tensor"),  # type: ignore[arg-type]
        ([Patch(layer=1, mask=ONE, value=0.0)], "Patch value must be a tensor"),  # type: ignore[arg-type]
    ]
    for edits, message in wrong:
        with pytest.raises(TypeError, match=message):
            vlm.replay(run, edits=edits)


def test_edits_below_the_start_are_errors(llava: tuple[VLM, Inputs, Run]) -> None:
    vlm, _, run = llava
    below = [
        Patch(layer=1, mask=ONE, value=ROW),
        FreezeTokens(first=1, last=3, mask=ONE),
        Knockout(first=1, last=3, query=ONE, key=ONE),
    ]
    for edit in below:
        with pytest.raises(IndexError, match=r"is 1, expected 2\.\.[34]"):
            vlm.replay(run, start=2, edits=[edit])
