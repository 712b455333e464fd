from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from tiny_models import build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.inference.fingerprints import (
    inputs_identity,
    model_identity,
    store_key,
    weights_identity,
)
from vlalign_utils.inference.store import canonical
from vlalign_utils.inference.token_groups import Random, last_true, named

RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


def llava() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def key(vlm: VLM, **changed: Any) -> str:
    given: dict[str, Any] = {
        "prompts": ["what", "colour"],
        "images": [RED, None],
        "answers": None,
        "groups": ["text", "random:image"],
        "pooling": {"text": "mean", "random:image": "mean"},
        "dtype": torch.float16,
    }
    given |= changed
    return canonical(store_key(vlm, **{**given, "groups": named(given["groups"])}))


def test_the_same_request_has_the_same_key() -> None:
    assert key(llava()) == key(llava())


@pytest.mark.parametrize(
    "changed",
    [
        {"prompts": ["what", "color"]},
        {"prompts": ["colour", "what"]},
        {"images": [BLUE, None]},
        {"images": [None, RED]},
        {"answers": ["a", "b"]},
        {"groups": ["image", "random:image"]},
        {"groups": {"text": "text", "random:image": Random("image", seed=1)}},
        {"pooling": {"text": "max", "random:image": "mean"}},
        {"dtype": torch.float32},
    ],
    ids=[f"change {i}" for i in range(9)],
)
def test_every_part_of_the_request_is_in_the_key(changed: dict[str, Any]) -> None:
    vlm = llava()
    assert key(vlm, **changed) != key(vlm)


def _swap(vlm: VLM) -> None:
    weight = vlm.model.lm_head.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def _nudge(vlm: VLM) -> None:
    vlm.layers[3].mlp.down_proj.weight.data[5, 7] += 1e-6


def _template(vlm: VLM) -> None:
    vlm.processor.chat_template += " "


def _words(vlm: VLM) -> None:
    vlm.tokenizer.add_tokens(["purple"])


def _larger_images(vlm: VLM) -> None:
    vlm.processor.image_processor.size = {"shortest_edge": 32}


def _config(vlm: VLM) -> None:
    vlm.model.config.text_config.rms_norm_eps = 1e-3


def _source(vlm: VLM) -> None:
    @dataclass
    class Checkpoint:
        name: str

    vlm.source = Checkpoint("elsewhere")


@pytest.mark.parametrize(
    "change",
    [
        _swap,
        _nudge,
        _template,
        _words,
        _larger_images,
        _config,
        _source,
        lambda vlm: vlm.model.train(),
        lambda vlm: vlm.model.half(),
    ],
)
def test_a_changed_model_or_processor_has_another_key(change: Callable[[VLM], Any]) -> None:
    vlm = llava()
    before = key(vlm)
    change(vlm)
    assert key(vlm) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_two_values_that_trade_places_are_noticed(dtype: torch.dtype) -> None:
    model = torch.nn.Module()
    model.register_buffer("w", (torch.arange(100_003) % 251).to(dtype))
    before = weights_identity(model)
    model.w[[7, 90_000]] = model.w[[90_000, 7]]
    assert weights_identity(model) != before


def test_weights_that_are_not_in_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="weight weight is not in memory"):
        weights_identity(torch.nn.Linear(2, 2, bias=False, device="meta"))
    assert weights_identity(torch.nn.Linear(2, 2, bias=False, device="meta"), pinned=True)


def test_a_function_cannot_be_in_a_key() -> None:
    with pytest.raises(ValueError, match="group 'mine' is a function: a store cannot tell when its code"):
        key(llava(), groups={"mine": last_true})


def test_a_palette_and_its_transparency_are_part_of_a_picture() -> None:
    one, other, clear = (RED.convert("P") for _ in range(3))
    other.putpalette(bytes(range(256)) * 3)
    clear.info["transparency"] = clear.getpixel((0, 0))
    keys = {key(llava(), images=[image, None]) for image in (one, other)}
    assert len(keys) == 2
    vlm = llava()
    given = [vlm.prepare(["what"], [image])["pixel_values"] for image in (one, clear)]
    same = key(vlm, images=[one, None]) == key(vlm, images=[clear, None])
    assert same == torch.equal(*given)


def test_what_the_processor_makes_of_a_picture_is_in_the_key_whatever_it_looks_at() -> None:
    """A processor that pastes what is transparent onto white, as some do."""
    vlm, clear = llava(), RED.convert("P")
    clear.info["transparency"] = clear.getpixel((0, 0))
    kind: Any = type(vlm.processor.image_processor)
    own = kind.preprocess

    def onto_white(self: Any, images: Any, **kwargs: Any) -> Any:
        flat = [image for row in images for image in (row if isinstance(row, list) else [row])]
        pasted = [
            Image.alpha_composite(Image.new("RGBA", i.size, "white"), i.convert("RGBA")).convert("RGB")
            for i in flat
        ]
        return own(self, pasted, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "preprocess", onto_white)
        assert key(vlm, images=[RED.convert("P"), None]) != key(vlm, images=[clear, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_every_bit_name_and_shape_of_inputs_counts(dtype: torch.dtype) -> None:
    given = {"a": torch.arange(6).view(2, 3).to(dtype), "n": torch.tensor(3), "what": "text"}
    same = inputs_identity(given)
    assert inputs_identity(dict(reversed(given.items()))) == same
    changed = given["a"].clone()
    changed[1, 2] += 1
    for other in ({"a": changed}, {"a": given["a"].view(3, 2)}, {"b": given["a"]}, {"what": "texts"}):
        assert inputs_identity(given | other) != same


def test_a_model_says_where_it_came_from() -> None:
    vlm = llava()
    vlm.source = {"name": "zoo/llava", "stage": "tuned", "dtype": torch.float32}
    source = model_identity(vlm)["source"]
    assert source == {"name": "zoo/llava", "stage": "tuned", "dtype": "torch.float32"}


def _scale(vlm: VLM) -> None:
    vlm.layers[1].self_attn.scaling *= 2


def _frequencies(vlm: VLM) -> None:
    vlm.model.model.language_model.rotary_emb.inv_freq.mul_(2)


def _adapter_off(vlm: VLM) -> None:
    vlm.model.disable_adapters()


def _hook(vlm: VLM) -> None:
    vlm.layers[0].register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize("change", [_scale, _frequencies, _adapter_off, _hook])
def test_what_the_weights_do_not_show_counts_too(change: Callable[[VLM], Any]) -> None:
    vlm, inputs = build("llava")
    vlm.model.add_adapter(LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    before = model_identity(vlm)
    vlm.record(**inputs)
    assert model_identity(vlm) == before  # a forward leaves nothing behind
    change(vlm)
    assert model_identity(vlm) != before
