"""Every vision-language family of transformers, driven without a line about any of them.

Oracles are plain hooks on the plain forward. A family's group says what it must allow; the model's own
trial (`vlm.capabilities()`) has to come to the same result.
"""

from contextlib import ExitStack
from copy import deepcopy
from functools import lru_cache
from typing import Any

import cross  # noqa: F401 - these modules register their families
import deep  # noqa: F401
import plain  # noqa: F401
import pytest
import rotary  # noqa: F401
import torch
from family import FAMILIES, UNBUILT
from tiny_models import Inputs, randomise
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlalign_utils import VLM, CrossOff, FreezeTokens, Knockout, Patch, Run
from vlalign_utils.book.pages import families
from vlalign_utils.driver import recording
from vlalign_utils.driver.anatomy import key_source, self_attentions
from vlalign_utils.driver.capabilities import Capabilities
from vlalign_utils.driver.edits import Edit, tokens_first
from vlalign_utils.driver.image_positions import other_pixels
from vlalign_utils.driver.padding import attended_tokens
from vlalign_utils.paths import ROOT

pytestmark = pytest.mark.conformance
each_family = pytest.mark.parametrize("name", sorted(FAMILIES))
LAYERS = 4


@lru_cache(maxsize=4)
def pristine(name: str, attention: str) -> tuple[Any, Inputs]:
    # A class that refuses sdpa as a whole may still have a decoder that takes it.
    mixed = {"": "eager", "vision_config": "eager", "text_config": attention}
    for asked in (attention, mixed, "eager"):
        config, model_class, inputs = FAMILIES[name].build()
        config._attn_implementation = asked
        try:
            return randomise(model_class(config)), inputs
        except ValueError as error:
            if asked == "eager" or "does not support an attention implementation" not in str(error):
                raise
    raise AssertionError("unreachable")


def build(name: str, attention: str = "sdpa") -> tuple[VLM, Inputs]:
    """A model nobody may change, and its batch of two inputs."""
    model, inputs = pristine(name, attention)
    return VLM(model), dict(inputs)


@lru_cache(maxsize=2)
def recorded(name: str) -> tuple[VLM, Inputs, Run, Capabilities]:
    vlm, inputs = build(name)
    return vlm, inputs, vlm.record(**inputs), vlm.capabilities(inputs)


def attended(run: Run, image: Tensor | None = None) -> Tensor:
    return attended_tokens(run.inputs, run.grid, image)


def moved(stream: Tensor) -> Tensor:
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(4))
    return stream + 0.5 * stream.std() * noise


def test_the_types_of_transformers_are_built_or_a_reason_is_given() -> None:
    listed = set(FAMILIES) | set(UNBUILT)
    here = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert not set(FAMILIES) & set(UNBUILT)
    assert here - listed == set()
    assert len(FAMILIES) >= 75
    assert all(reason.endswith(".") for reason in UNBUILT.values())


@each_family
def test_the_book_shows_what_the_trial_finds(name: str) -> None:
    shown = families.load(ROOT).families[name]
    *_, allowed = recorded(name)
    assert shown.group == FAMILIES[name].group
    found = {what: finding.works for what, finding in allowed.findings().items()}
    assert {what: works for what, (works, _) in shown.findings.items()} == found, "run: make families"
    assert allowed.replay.works


@each_family
def test_the_layers_are_found_without_weights(name: str) -> None:
    config, model_class, _ = FAMILIES[name].build()
    with torch.device("meta"):
        assert VLM(model_class(config)).n_layers == LAYERS


@each_family
def test_residuals_are_what_enters_each_layer(name: str) -> None:
    vlm, inputs, run, _ = recorded(name)
    entered: list[Tensor] = []

    def note(layer: Any, args: Any, kwargs: Any) -> None:
        entered.append((args[0] if args else kwargs["hidden_states"]).clone())

    with ExitStack() as hooks, torch.no_grad():
        for layer in vlm.layers:
            hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        logits = vlm.model(**inputs, use_cache=False).logits
    assert torch.equal(logits, run.logits)
    assert logits.isfinite().all()
    assert len(run.resid) == LAYERS + 1
    assert len(entered) == LAYERS
    assert all(torch.equal(a, b) for a, b in zip(entered, run.resid, strict=False))


@each_family
def test_replay_resume_and_early_stop_are_exact(name: str) -> None:
    vlm, inputs, run, _ = recorded(name)
    ran: list[int] = []
    with ExitStack() as hooks, torch.no_grad():
        for start in range(LAYERS + 1):
            assert torch.equal(vlm.replay(run, start=start).logits, run.logits)
        for k, layer in enumerate(vlm.layers):
            inner = next((m for m in layer.modules() if m is not layer and not list(m.children())), layer)
            hooks.callback(inner.register_forward_pre_hook(lambda m, a, k=k: ran.append(k)).remove)
        for stop in range(LAYERS + 1):
            ran.clear()
            assert torch.equal(vlm.prefix(inputs, stop=stop), run.resid[stop])
            assert set(ran) <= set(range(stop))
            ran.clear()
            vlm.replay(run, start=stop)
            assert set(ran) <= set(range(stop, LAYERS))


@each_family
def test_image_positions_declared_and_found_agree(name: str) -> None:
    vlm, inputs, run, allowed = recorded(name)
    mask, found = vlm.image_mask(inputs, run), vlm.pixel_mask(inputs, run)
    if FAMILIES[name].group == "cross":
        assert mask is None
        assert not found.any()
        assert not allowed.image_positions.works
    else:
        assert mask is not None
        assert found.any(dim=-1).all()
        assert not (found & ~mask).any()
        assert allowed.image_positions.works


@each_family
@torch.no_grad()
def test_patching(name: str) -> None:
    """No-op, swap of everything, and nothing before the patch when the model says that it is causal."""
    vlm, inputs, run, allowed = recorded(name)
    other = vlm.record(**inputs | other_pixels(inputs))
    mask = torch.rand(run.grid, generator=torch.Generator().manual_seed(0)) < 0.5
    everything = torch.ones_like(mask)
    last = torch.zeros_like(mask)
    last[:, -2:] = True
    whole = allowed.whole_from
    for layer in range(LAYERS + 1):
        same = vlm.replay(run, edits=[Patch(layer, mask, run.resid[layer])])
        assert torch.equal(same.logits, run.logits)
        swapped = vlm.replay(run, edits=[Patch(layer, everything, other.resid[layer])])
        assert torch.equal(swapped.resid[layer], other.resid[layer])
        if layer >= whole:
            assert torch.equal(swapped.logits, other.logits)
        patched = vlm.replay(run, edits=[Patch(layer, last, moved(run.resid[layer]))])
        assert not torch.equal(patched.logits, run.logits)
        if allowed.causal.works:
            before = attended(run) & ~last
            torch.testing.assert_close(patched.logits[before], run.logits[before], rtol=1e-4, atol=1e-4)
    if whole:
        assert not allowed.whole_state.works
        assert not torch.equal(
            vlm.replay(run, edits=[Patch(whole - 1, everything, other.resid[whole - 1])]).logits, other.logits
        )


@each_family
@torch.no_grad()
def test_freezing_holds_image_tokens_and_nothing_below(name: str) -> None:
    vlm, inputs, run, allowed = recorded(name)
    image = vlm.image_mask(inputs, run)
    mask = attended(run) if image is None else image
    frozen = vlm.replay(run, edits=[FreezeTokens(1, 2, mask)])
    streams = [tokens_first(stream, run.grid) for stream in frozen.resid]
    before = [tokens_first(stream, run.grid) for stream in run.resid]
    assert torch.equal(streams[1], before[1])
    assert all(torch.equal(streams[k][mask], before[1][mask]) for k in (2, 3))
    assert not torch.equal(streams[4][mask], before[1][mask])
    assert allowed.freeze.works == (image is not None)


def weights_of(vlm: VLM, edits: list[Edit], run: Run) -> tuple[dict[int, list[Tensor]], Tensor]:
    """Attention weights that eager self-attention returns in each layer, and the logits, under edits."""
    weights: dict[int, list[Tensor]] = {}
    with ExitStack() as hooks:
        for k, layer in enumerate(vlm.layers):
            for attention in self_attentions(layer):

                def note(module: Any, args: Any, kwargs: Any, output: Any, k: int = k) -> None:
                    tokens = run.grid[1]
                    if not isinstance(output, tuple) or kwargs.get(key_source(module) or "") is not None:
                        return
                    weights.setdefault(k, []).extend(  # T5's position bias has the shape of weights
                        w
                        for w in output[1:]
                        if isinstance(w, Tensor) and w.shape[-2:] == (tokens, tokens) and w.min() >= 0
                    )

                hooks.callback(attention.register_forward_hook(note, with_kwargs=True).remove)
        logits = vlm.replay(run, edits=edits).logits
    return weights, logits


@each_family
@torch.no_grad()
def test_knockout_weights_are_zero_in_the_window_only(name: str) -> None:
    vlm, inputs = build(name, "eager")
    run = vlm.record(**inputs)
    allowed = recorded(name)[3]
    image = vlm.image_mask(inputs, run)
    key = image if image is not None else attended(run) & (torch.arange(run.grid[1]) == 3)
    query = attended(run, image) & ~key & (torch.arange(run.grid[1]) > 3)
    first, last = 1, 2
    if not any(self_attentions(layer) for layer in vlm.layers[first : last + 1]):
        pytest.fail(f"{name}: build it with attention in layer 1 or 2")
    if name in REFUSING:
        with pytest.raises(ValueError, match=REFUSING[name]):
            weights_of(vlm, [Knockout(first, last, query, key)], run)
        return
    weights, logits = weights_of(vlm, [Knockout(first, last, query, key)], run)
    clean, _ = weights_of(vlm, [], run)
    pairs = (query[:, :, None] & key[:, None, :])[:, None]
    assert clean
    for k, cut in weights.items():
        for with_cut, without in zip(cut, clean[k], strict=True):
            if first <= k <= last:
                assert (with_cut.masked_select(pairs) == 0).all()
            elif k < first or allowed.knockout.works:  # an indexer may choose other keys after the cut
                was = without.masked_select(pairs) > 0
                assert (with_cut.masked_select(pairs)[was] > 0).all()
    assert not torch.equal(logits, run.logits)
    if not allowed.knockout.works and image is not None:
        return  # what leaks may differ between implementations
    fast, _, fast_run, _ = recorded(name)
    by_sdpa = fast.replay(fast_run, edits=[Knockout(first, last, query, key)]).logits
    seen = attended(run, image)
    scale = logits[seen].abs().max().item()
    torch.testing.assert_close(by_sdpa[seen], logits[seen], rtol=1e-3, atol=1e-3 * scale)


@each_family
@torch.no_grad()
def test_with_all_image_access_cut_pixels_change_nothing(name: str) -> None:
    """End to end, by full forwards on other pixels; where it leaks, the model's trial has said so."""
    vlm, inputs, run, allowed = recorded(name)
    image = vlm.image_mask(inputs, run)
    text = attended(run, image) if image is None else attended(run, image) & ~image
    edits: list[Edit] = [] if image is None else [Knockout(0, LAYERS - 1, text, image)]
    if vlm.anatomy.cross_attentions() and allowed.cross_off.works is not False:
        edits.append(CrossOff(0, LAYERS - 1))
    changed = inputs | other_pixels(inputs)
    effect = (vlm.record(**changed).logits - run.logits)[text].abs().max()
    assert effect > 0
    verdict = allowed.cross_off if image is None else allowed.knockout
    assert verdict.works is not None
    if FAMILIES[name].group == "hybrid" or name in NOT_CUT:
        assert verdict.works is False
        with pytest.raises(ValueError, match="does not allow knockout"):
            allowed.require("knockout")
        return
    logits = [recording.forward(vlm.anatomy, one, edits).logits[text] for one in (inputs, changed)]
    assert verdict.works, verdict.detail
    assert (logits[0] - logits[1]).abs().max() <= 1e-3 * effect


@each_family
def test_gradients_from_a_cached_input_are_the_full_forward_s(name: str) -> None:
    vlm, inputs = build(name)
    model = deepcopy(vlm.model)
    vlm = VLM(model)
    model.requires_grad_(False)
    trained = [p for p in vlm.layers[2].parameters() if p.is_floating_point()]
    for parameter in trained:
        parameter.requires_grad_(True)
    run = vlm.record(**inputs)
    seen = attended(run)

    def gradients(logits: Tensor) -> list[Tensor | None]:
        loss = logits[seen].float().square().mean()
        return list(torch.autograd.grad(loss, trained, allow_unused=True))

    cached = gradients(vlm.replay(run, start=2).logits)
    full = gradients(model(**inputs, use_cache=False).logits)
    assert any(g is not None and g.abs().max() > 0 for g in full)
    for a, b in zip(cached, full, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def one_row(inputs: Inputs, row: int, padding: int) -> Inputs:
    """One input of the batch by itself: rows have equally many pixels, so every tensor splits in halves."""
    tokens = {name: value.shape[1] for name, value in inputs.items() if name.endswith("input_ids")}
    alone = {}
    for name, value in inputs.items():
        axis = 0 if value.shape[0] % 2 == 0 else -1  # images packed into one strip
        part = value.chunk(2, dim=axis)[row]
        if name == "image_token_pooling":  # counts patches through the whole batch
            part = torch.where(
                part < 0, part, part - inputs["image_token_pooling"].chunk(2)[row].clamp(min=0).min()
            )
        over_tokens = (
            part.ndim > 1
            and part.shape[1] in tokens.values()
            and "pixel" not in name
            and not name.startswith("qformer")
        )
        alone[name] = part[:, padding:] if over_tokens and "decoder" not in name else part
    return alone


@each_family
def test_a_left_padded_row_is_itself(name: str) -> None:
    """Batches of two are rows side by side; where padding reaches other tokens, the trial has said so."""
    vlm, inputs, run, allowed = recorded(name)
    padding = int((inputs["attention_mask"][0] == 0).sum()) if "attention_mask" in inputs else 0
    assert padding == 2 or name in UNPADDED
    if allowed.padding.works is False:
        assert name in UNPADDED, allowed.padding.detail
    assert (allowed.padding.works is None) == (name in UNTRIED), allowed.padding.detail
    if name in ("git", "hunyuan_vl"):  # learned positions that count padding, and rows that count each other
        assert allowed.padding.works is False
    for row in (0, 1) if name not in UNPADDED else ():
        alone = vlm.record(**one_row(inputs, row, padding if row == 0 else 0))
        tokens = alone.grid[1]
        torch.testing.assert_close(
            alone.logits[0], run.logits[row, -tokens:], rtol=1e-3, atol=1e-3 * run.logits.abs().max().item()
        )


@each_family
def test_bfloat16_is_driven_exactly_too(name: str) -> None:
    model, inputs = pristine(name, "sdpa")
    model = deepcopy(model)
    strict = tuple(model._keep_in_fp32_modules_strict or ())  # as from_pretrained has it
    for part, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not any(kept in part for kept in strict):
            value.data = value.data.to(torch.bfloat16)
    half = VLM(model)
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    run = half.record(**inputs)
    assert run.logits.isfinite().all()
    half.self_test(run)


@each_family
def test_sweeps_that_reuse_work_give_what_the_usual_loop_gives(name: str) -> None:
    """Full forwards, vision tower included, one per row, against rows that share what they can."""
    vlm, inputs, run, allowed = recorded(name)
    image = vlm.image_mask(inputs, run)
    last = attended(run) & (torch.arange(run.grid[1]) == run.grid[1] - 1)
    later = attended(run) & (torch.arange(run.grid[1]) >= run.grid[1] - 3)
    sets: list[list[Edit]] = [[Patch(k, last, moved(run.resid[k]))] for k in range(LAYERS + 1)]
    if image is not None:
        sets += [[Patch(k, image, moved(run.resid[k]))] for k in range(LAYERS)]
        sets += [[FreezeTokens(k, k + 1, image)] for k in range(LAYERS - 1)]
        if allowed.knockout.works:
            sets += [[Knockout(k, k, later, image)] for k in range(LAYERS)]
    keyed = vlm.record(kv_cache=True, **inputs)
    assert torch.equal(keyed.logits, run.logits)
    found = dict(vlm.replays(keyed, sets, keep=3))
    assert sorted(found) == list(range(len(sets)))
    for i, edits in enumerate(sets):
        usual = recording.forward(vlm.anatomy, inputs, edits).logits[:, -3:]
        tolerance = ROUNDING.get(name, 1e-5)
        torch.testing.assert_close(found[i], usual, rtol=tolerance, atol=tolerance * usual.abs().max().item())
    # Nothing batched, nothing left out: the very same numbers.
    for i, logits in vlm.replays(run, sets, budget=1):
        assert torch.equal(logits, recording.forward(vlm.anatomy, inputs, sets[i]).logits)


# Types whose knockout in layers 1 and 2 is refused.
REFUSING = dict.fromkeys(
    (
        "glm5_next",
        "lfm2_vl",
        "lfm3_vl",
        "minicpm_ocr",
        "minicpmv4_6",
        "minicpmv4_7",
        "nemotron_h_omni",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen4_exp",
    ),
    "its tokens mix in another way",
) | {"t5gemma2": "no self-attention ran"}  # one module attends to the encoder and to the tokens
# Types that do not allow the cut: tokens choose their keys before the mask is applied, or one module attends
# to the encoder and to the tokens.
NOT_CUT = ("minimax_m3_vl", "mistral_large4", "t5gemma2")
# Types with a token for which a last bit in a grouped product of the experts becomes more than 1e-5.
ROUNDING = {"muse_spark": 5e-5}
# Types whose trial cannot compare a row in a padded batch with the row alone: nothing is padded, or indices
# count patches through the whole batch.
UNTRIED = ("molmo2", "pix2struct", "pp_formulanet", "vision-encoder-decoder")
# Types whose rows do not stay apart from padding in transformers itself, or that take no padding.
UNPADDED: dict[str, str] = {
    "hunyuan_vl": "numbers the images of a batch through",
    "mistral_large4": "scales queries by absolute positions, padding included",
    "minimax_m3_vl": "cuts blocks of keys at absolute positions, padding included",
    "florence2": "learned positions of the encoder count padding",
    "git": "learned positions count padding",
    "udop": "the empty box of padding takes a patch, as the box of a word does",
    "pix2struct": "reads pixels alone; its own tokens are never padded on the left",
    "pp_formulanet": "reads pixels alone; its own tokens are never padded on the left",
    "vision-encoder-decoder": "reads pixels alone; its own tokens are never padded on the left",
}
