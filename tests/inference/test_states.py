import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from PIL import Image
from tiny_models import VISION, build, each_family, image_noise, randomise, tiny_processor, tokens
from torch import Tensor, nn

from vlalign_utils import VLM
from vlalign_utils.analysis.paired_states import caption_states, pair_states
from vlalign_utils.data.language import describe
from vlalign_utils.data.pairs import caption_pairs
from vlalign_utils.driver.edits import tokens_first
from vlalign_utils.inference import pooling
from vlalign_utils.inference.states import (
    capture,
    collect,
    last_true,
    token_masks,
)

PROMPTS = ["what colour", "what colour is the red shape ?", "circle", "blue square is green"]
IMAGES = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue", "white")]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def alone(vlm: VLM, prompt: str, image: Image.Image | None) -> tuple[Tensor, Tensor]:
    """Residual streams [layers, tokens, d] of one unpadded item, and which of its tokens are image."""
    inputs = vlm.prepare([prompt], None if image is None else [image])
    assert inputs["attention_mask"].all()
    run = vlm.record(**inputs)
    return torch.stack(run.resid)[:, 0], inputs["input_ids"][0] == vlm.model.config.image_token_id


@pytest.mark.slow_except("1", "3")
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_of_unequal_lengths_give_what_items_give_alone(vlm: VLM, batch_size: int) -> None:
    states = collect(vlm, PROMPTS, IMAGES, ["image", "last_image", "text", "last"], batch_size)
    for i, (prompt, image) in enumerate(zip(PROMPTS, IMAGES, strict=True)):
        resid, is_image = alone(vlm, prompt, image)
        expected = {
            "image": resid[:, is_image].mean(1),
            "last_image": resid[:, is_image][:, -1],
            "text": resid[:, ~is_image].mean(1),
            "last": resid[:, -1],
        }
        for group, value in expected.items():
            assert torch.allclose(states[group][:, i], value, atol=1e-4), group


@pytest.mark.slow
def test_text_alone_needs_no_images(vlm: VLM) -> None:
    states = collect(vlm, PROMPTS, None, ["text", "last"])
    resid, _ = alone(vlm, PROMPTS[1], None)
    assert states["text"].shape == (vlm.n_layers + 1, 4, vlm.d_model)
    assert torch.allclose(states["text"][:, 1], resid.mean(1), atol=1e-4)
    assert torch.allclose(states["last"][:, 1], resid[:, -1], atol=1e-4)


def test_image_tokens_are_asked_of_text_in_vain(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="group 'image' has no token in item 0"):
        collect(vlm, PROMPTS, None, ["image"])


def test_unknown_group_is_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="unknown token group 'middle'; expected one of image, last_image"):
        collect(vlm, PROMPTS, IMAGES, ["middle"])


def test_pairs_are_seen_and_read_apart(vlm: VLM) -> None:
    scenes = caption_pairs(3, max_things=1)
    states = pair_states(vlm, scenes, batch_size=2)
    assert set(states) == {"image", "last_image", "text", "last"}
    resid, is_image = alone(vlm, describe("en"), scenes[1].image)
    assert torch.allclose(states["image"][:, 1], resid[:, is_image].mean(1), atol=1e-4)
    resid, _ = alone(vlm, scenes[1].caption["en"], None)
    assert torch.allclose(states["text"][:, 1], resid.mean(1), atol=1e-4)


def test_a_caption_is_read_in_either_language(vlm: VLM) -> None:
    scenes = caption_pairs(3, max_things=1)
    both = [caption_states(vlm, scenes, language, batch_size=2) for language in ("en", "it")]
    for language, states in zip(("en", "it"), both, strict=True):
        assert set(states) == {"text", "last"}
        resid, _ = alone(vlm, scenes[2].caption[language], None)
        assert torch.allclose(states["text"][:, 2], resid.mean(1), atol=1e-4)
        assert torch.equal(states["last"], pair_states(vlm, scenes, language, batch_size=2)["last"])


def test_result_is_plain_float32_without_a_graph(vlm: VLM) -> None:
    states = collect(vlm, PROMPTS, IMAGES, ["last"])["last"]
    assert states.dtype == torch.float32
    assert not states.requires_grad


def test_progress_is_one_line(vlm: VLM, capsys: pytest.CaptureFixture[str]) -> None:
    collect(vlm, PROMPTS, None, ["last"], batch_size=2, label="captions")
    assert capsys.readouterr().err == "captions: 4/4\n"


@each_family
def test_capture_is_exactly_the_recorded_stream(family: str) -> None:
    vlm, inputs = build(family)
    image = vlm.image_mask(inputs)
    groups = ["text", "last", "question", *([] if image is None else ["image", "last_image", "random:image"])]
    run = vlm.record(**inputs)
    masks = token_masks(vlm, run, groups)
    resid = [tokens_first(r, run.grid).flatten(start_dim=2) for r in run.resid]  # [B, T, D] each
    for how in ("mean", "last", "max", "none"):
        states = capture(vlm, inputs, groups, how)
        assert list(states) == groups
        for group, mask in masks.items():
            for k, stream in enumerate(resid):
                for b in range(2):
                    rows = stream[b, mask[b]]
                    if how == "none":
                        assert torch.equal(states[group][b][k], rows)
                    elif how == "mean":
                        torch.testing.assert_close(states[group][k, b], rows.mean(0), rtol=1e-6, atol=1e-6)
                    else:
                        expected = rows[-1] if how == "last" else rows.amax(0)
                        assert torch.equal(states[group][k, b], expected)


def test_layers_that_a_model_skips_keep_their_slots() -> None:
    vlm, inputs = build("mllama")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    states = capture(vlm, text, ["last"], "last")["last"]
    assert torch.equal(states, torch.stack(vlm.record(**text).resid)[:, :, -1])
    assert torch.equal(states[1], states[2])  # layer 1 is cross-attention


def test_streams_side_by_side_are_laid_end_to_end() -> None:
    masks = {"all": torch.ones(2, 3, dtype=torch.bool)}
    for shape, batch in (((5, 2, 3, 4), 1), ((2, 3, 5, 4), 0)):
        stream = torch.randn(shape)
        (groups, read), *_ = pooling._readers(masks, {"all": "mean"})
        hidden = tokens_first(stream, (2, 3)).flatten(start_dim=2)
        assert groups == [("all", 2)]
        assert torch.allclose(read(hidden), stream.mean(batch + 1).movedim(batch, 0).flatten(start_dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_are_summed_in_float32(dtype: torch.dtype) -> None:
    vlm, inputs = build("llava")
    vlm.model.to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    states = capture(vlm, inputs, ["text", "image"])
    run = vlm.record(**inputs)
    for group, mask in token_masks(vlm, run, ["text", "image"]).items():
        for k, stream in enumerate(run.resid):
            expected = torch.stack([stream[b, mask[b]].float().mean(0) for b in range(2)])
            assert torch.allclose(states[group][k], expected, rtol=1e-6, atol=1e-6)


def test_each_group_can_have_its_own_pooling(vlm: VLM) -> None:
    states = collect(vlm, PROMPTS, IMAGES, ["image", "text"], 2, pooling={"image": "none", "text": "max"})
    assert [tuple(item.shape) for item in states["image"]] == [(5, 4, 32)] * 4
    resid, is_image = alone(vlm, PROMPTS[1], IMAGES[1])
    assert torch.allclose(states["image"][1], resid[:, is_image], atol=1e-4)
    assert torch.allclose(states["text"][:, 1], resid[:, ~is_image].amax(1), atol=1e-4)


def test_the_head_never_runs_and_no_hook_stays(vlm: VLM) -> None:
    calls: list[int] = []
    with vlm.model.lm_head.register_forward_pre_hook(lambda *_: calls.append(1)):
        collect(vlm, PROMPTS, IMAGES, ["last"])
    assert not calls
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in vlm.layers.modules())


def test_no_stream_outlives_its_hook() -> None:
    vlm, inputs = build("llava")
    vlm.image_mask(inputs)  # looks at the model the first time
    streams: list[weakref.ref[Tensor]] = []

    def alive(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert sum(ref() is not None for ref in streams) <= 1  # what the layer before was given, at most
        streams.append(weakref.ref(args[0]))

    with ExitStack() as hooks:
        for layer in vlm.layers:
            hooks.enter_context(layer.register_forward_pre_hook(alive))
        capture(vlm, inputs, ["text", "image"])
    assert len(streams) == vlm.n_layers


def test_answers_are_a_group_of_their_own(vlm: VLM) -> None:
    answers = ["red", "blue circle", "square", "green"]
    states = collect(vlm, PROMPTS, IMAGES, ["answer", "last", "question"], 2, answers=answers)
    inputs = vlm.prepare([PROMPTS[1]], [IMAGES[1]], [answers[1]])
    resid = torch.stack(vlm.record(**inputs).resid)[:, 0]
    assert torch.allclose(states["answer"][:, 1], resid[:, -3:].mean(1), atol=1e-4)  # two words and the end
    assert torch.allclose(states["last"][:, 1], resid[:, -4], atol=1e-4)
    assert torch.allclose(states["question"][:, 1], resid[:, 5:-3].mean(1), atol=1e-4)


def test_pictures_and_text_alone_may_be_mixed(vlm: VLM) -> None:
    mixed = [IMAGES[0], None, IMAGES[2], None]
    states = collect(vlm, PROMPTS, mixed, ["last"])["last"]
    assert torch.allclose(states[:, 1], collect(vlm, PROMPTS, None, ["last"])["last"][:, 1], atol=1e-5)
    assert torch.allclose(states[:, 2], collect(vlm, PROMPTS, IMAGES, ["last"])["last"][:, 2], atol=1e-5)


def test_random_tokens_do_not_depend_on_the_batch(vlm: VLM) -> None:
    one, many = (collect(vlm, PROMPTS, IMAGES, ["random:last"], n)["random:last"] for n in (1, 4))
    assert torch.allclose(one, many, atol=1e-4)


@pytest.mark.slow
def test_memory_that_runs_out_changes_no_number(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(vlm, PROMPTS, IMAGES, ["text"], batch_size=4)["text"]
    sizes: list[int] = []

    def small(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with vlm.layers[2].register_forward_pre_hook(small):
        halves = collect(vlm, PROMPTS, IMAGES, ["text"], batch_size=4)["text"]
    assert sizes == [4, 2, 2]
    assert torch.allclose(whole, halves, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_can_be_kept_in_half(vlm: VLM, dtype: torch.dtype) -> None:
    half, full = (collect(vlm, PROMPTS, IMAGES, ["text"], dtype=d)["text"] for d in (dtype, torch.float32))
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))


def test_what_float16_cannot_hold_is_said() -> None:
    vlm, inputs = build("llava")
    with torch.no_grad():
        vlm.model.get_input_embeddings().weight.mul_(1e7)
    with pytest.raises(ValueError, match="too large for float16"):
        capture(vlm, inputs, ["text"], dtype=torch.float16)


@pytest.mark.slow
def test_a_store_is_never_read_by_another_model(vlm: VLM, tmp_path: Path) -> None:
    first = collect(vlm, PROMPTS, IMAGES, ["text"], store=tmp_path)["text"]
    changed = VLM(build("llava")[0].model, tiny_processor())
    with torch.no_grad():
        changed.layers[1].mlp.up_proj.weight[0, 0] += 1
    second = collect(changed, PROMPTS, IMAGES, ["text"], store=tmp_path)["text"]
    assert torch.equal(second, collect(changed, PROMPTS, IMAGES, ["text"])["text"])
    assert not torch.equal(first, second)
    assert len(list(tmp_path.iterdir())) == 2


def test_pairs_can_be_kept(vlm: VLM, tmp_path: Path) -> None:
    scenes = caption_pairs(3, max_things=1)
    kept, plain = pair_states(vlm, scenes, store=tmp_path), pair_states(vlm, scenes)
    assert list(kept) == list(plain)
    assert all(torch.equal(kept[group], plain[group]) for group in plain)


def test_a_model_may_insert_its_image_features_without_placeholders() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = transformers.GitConfig(vision_config={**VISION}, **shape, vocab_size=64)
    git, inputs = VLM(randomise(transformers.GitForCausalLM(config))), tokens(0)
    inputs["pixel_values"] = image_noise(2, 3, 16, 16)
    states = capture(git, inputs, ["image", "text", "last", "random:image"], "none")
    resid = torch.stack(git.record(**inputs).resid)
    for b, padding in enumerate((2, 0)):
        assert torch.equal(states["image"][b], resid[:, b, :5])  # patches and their class token
        assert torch.equal(states["text"][b], resid[:, b, 5 + padding :])
        assert torch.equal(states["last"][b], resid[:, b, -1:])
        assert states["random:image"][b].shape[1] == 5


class Refused(NamedTuple):
    error: type[Exception]
    message: str
    given: dict[str, Any]


@pytest.mark.parametrize(
    "case",
    [
        Refused(ValueError, "unknown pooling 'sum'; expected one of mean, last", {"pooling": "sum"}),
        Refused(ValueError, "pooling is given for", {"pooling": {"image": "mean"}}),
        Refused(ValueError, "dtype is torch.float64", {"dtype": torch.float64}),
        Refused(ValueError, "4 prompts but 1 images", {"images": IMAGES[:1]}),
        Refused(ValueError, "4 prompts but 1 answers", {"answers": ["red"]}),
        Refused(ValueError, "prompts is empty", {"prompts": [], "images": None}),
        Refused(ValueError, "group 'answer' needs answers=", {"groups": ["answer"]}),
        Refused(ValueError, "group 'random:answer' needs answers=", {"groups": ["random:answer"]}),
        Refused(ValueError, "batch_size is 0", {"batch_size": 0}),
        Refused(ValueError, "groups is empty", {"groups": []}),
        Refused(TypeError, "a mask of one batch", {"groups": {"mine": torch.ones(4, 9, dtype=torch.bool)}}),
        Refused(ValueError, "leave store= out", {"pooling": "none", "store": "nowhere"}),
        Refused(ValueError, "'mine' is a function", {"groups": {"mine": last_true}, "store": "nowhere"}),
    ],
    ids=lambda case: case.message,
)
def test_what_does_not_fit_is_refused_before_the_model_runs(vlm: VLM, case: Refused) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the model ran")

    given = {"prompts": PROMPTS, "images": IMAGES, "groups": ["last"], **case.given}
    with vlm.model.register_forward_pre_hook(never), pytest.raises(case.error, match=case.message):
        collect(vlm, **given)


def test_a_vlm_without_a_processor_cannot_collect() -> None:
    with pytest.raises(ValueError, match="has no processor"):
        collect(build("llava")[0], PROMPTS, IMAGES, ["last"])


def test_masks_of_another_shape_than_the_stream_are_refused() -> None:
    vlm, inputs = build("llava")
    masks = {"mine": torch.ones(2, 5, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"the residual stream has shape \[2, 14, 32\], the token groups"):
        pooling.pooled_forward(vlm.anatomy, inputs, masks, {"mine": "mean"})


def test_last_true_of_padded_rows() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    assert (
        last_true(mask).tolist() == torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool().tolist()
    )
