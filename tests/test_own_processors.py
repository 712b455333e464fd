"""Folders as on the hub, each with the processor class of its family: loaded, run, saved and loaded again."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from PIL import Image
from tiny_models import IMAGE, TEXT, VISION, WORDS, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from vlalign_utils import VLM, load_vlm
from vlalign_utils.tuning.export import save

FINE = {**VISION, "patch_size": 4}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
ROWS = {f"<row_{row}_col_{column}>": 40 + 2 * row + column for row in (1, 2) for column in (1, 2)}
TILED = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
VIDEO = {**TILED, "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}}}
SQUARE = {"size": {"height": 16, "width": 16}}
PATCHES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}


@dataclass(frozen=True)
class Family:
    """A model, its processor's class and files, and what they make of two pictures, 20 x 16 and 48 x 16."""

    model: Callable[[], Any]
    processor: str
    image_processor: str
    pictures: dict[str, Any]
    image: str  # the placeholder that a user writes
    tokens: dict[str, str]  # special tokens by the attribute that the processor asks for
    counts: list[int]  # positions that hold image features
    options: dict[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ()  # tokens around the features of the second picture
    ids: dict[str, int] = field(default_factory=dict)


def idefics3() -> Any:
    return transformers.Idefics3ForConditionalGeneration(
        transformers.Idefics3Config(
            vision_config=FINE, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE
        )
    )


def smolvlm() -> Any:
    return transformers.SmolVLMForConditionalGeneration(
        transformers.SmolVLMConfig(
            vision_config=FINE, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE
        )
    )


def internvl() -> Any:
    return transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            vision_config={**FINE, "image_size": [16, 16], "patch_size": [4, 4]},
            text_config={"model_type": "qwen2", **TEXT},
            image_token_id=IMAGE,
            image_seq_length=4,
        )
    )


def llava_next() -> Any:
    return transformers.LlavaNextForConditionalGeneration(
        transformers.LlavaNextConfig(
            vision_config={"model_type": "clip_vision_model", **VISION},
            text_config={"model_type": "llama", **TEXT},
            image_token_index=IMAGE,
            image_grid_pinpoints=[[16, 32], [16, 48]],
        )
    )


def llava_onevision() -> Any:
    return transformers.LlavaOnevisionForConditionalGeneration(
        transformers.LlavaOnevisionConfig(
            vision_config=SIGLIP,
            text_config={"model_type": "qwen2", **TEXT},
            image_token_index=IMAGE,
            video_token_index=62,
            image_grid_pinpoints=[[16, 32], [16, 48]],
        )
    )


def paligemma() -> Any:
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config=SIGLIP,
            text_config={"model_type": "gemma", **TEXT},
            image_token_index=IMAGE,
            vocab_size=64,
            hidden_size=32,
            projection_dim=32,
        )
    )


def qwen2_5_vl() -> Any:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            vision_config=vision,
            text_config={**TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
            image_token_id=IMAGE,
            video_token_id=62,
            vision_start_token_id=61,
            vision_end_token_id=60,
        )
    )


def of_tiny(name: str) -> Callable[[], Any]:
    def build() -> Any:
        config, model_class, _ = tiny_models.FAMILIES[name]()
        return model_class(config)

    return build


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_IDS = {"<|vision_end|>": 60, "<|vision_start|>": 61, "<|video_pad|>": 62}
IDEFICS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
FAMILIES = {
    "idefics3": Family(
        idefics3,
        "Idefics3Processor",
        "Idefics3ImageProcessor",
        TILED,
        "<image>",
        IDEFICS,
        [20, 12],
        {"image_seq_len": 4},
        ("<row_1_col_1>", "<row_1_col_2>", "<global-img>"),
    ),
    "smolvlm": Family(
        smolvlm,
        "SmolVLMProcessor",
        "SmolVLMImageProcessor",
        VIDEO,
        "<image>",
        IDEFICS,
        [20, 12],
        {"image_seq_len": 4},
        ("<row_1_col_1>", "<row_1_col_2>", "<global-img>"),
    ),
    "internvl": Family(
        internvl,
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        {**SQUARE, "crop_to_patches": True, "max_patches": 3},
        "<IMG_CONTEXT>",
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        [4, 16],
        {"image_seq_length": 4},
        ("<img>", "</img>"),
    ),
    "llava_next": Family(
        llava_next,
        "LlavaNextProcessor",
        "LlavaNextImageProcessor",
        {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
        | {"image_grid_pinpoints": [[16, 32], [16, 48]]},
        "<image>",
        {"image_token": "<image>"},
        [10, 18],
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_onevision": Family(
        llava_onevision,
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        {**SQUARE, "image_grid_pinpoints": [[16, 32], [16, 48]]},
        "<image>",
        {"image_token": "<image>", "video_token": "<video>"},
        [10, 18],
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "gemma3": Family(
        of_tiny("gemma3"),
        "Gemma3Processor",
        "Gemma3ImageProcessor",
        SQUARE,
        "<start_of_image>",
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        [4, 4],
        {"image_seq_length": 4},
        ("<start_of_image>", "<end_of_image>"),
    ),
    "paligemma": Family(
        paligemma,
        "PaliGemmaProcessor",
        "SiglipImageProcessor",
        {**SQUARE, "image_seq_length": 4},
        "<image>",
        {"image_token": "<image>"},
        [4, 4],
    ),
    "qwen2_5_vl": Family(
        qwen2_5_vl,
        "Qwen2_5_VLProcessor",
        "Qwen2VLImageProcessor",
        PATCHES,
        QWEN_IMAGE,
        QWEN,
        [4, 12],
        {},
        ("<|vision_start|>", "<|vision_end|>"),
        QWEN_IDS,
    ),
    "qwen3_vl": Family(
        of_tiny("qwen3_vl"),
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        PATCHES,
        QWEN_IMAGE,
        QWEN,
        [4, 12],
        {},
        ("<|vision_start|>", "<|vision_end|>"),
        QWEN_IDS,
    ),
}


def write(folder: Path, family: Family) -> Path:
    """The files of a repository on the hub: legacy names, options of the processor apart from its parts."""
    names = [*family.tokens.values(), *ROWS]
    placeholder = family.tokens.get("context_image_token") or family.tokens["image_token"]
    free = iter(range(max(ROWS.values()) + 1, 60))
    special = {name: ROWS.get(name) or family.ids.get(name) or next(free) for name in names}
    special[placeholder] = IMAGE
    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])} | special
    words |= {f"word{i}": i for i in set(range(IMAGE)) - set(words.values())}  # no gap, as in real ones
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={**family.tokens, **{f"tile_{i}": name for i, name in enumerate(ROWS)}},
    )
    randomise(family.model()).save_pretrained(folder)
    fast.save_pretrained(folder)
    pictures = {"image_processor_type": family.image_processor, "processor_class": family.processor}
    (folder / "preprocessor_config.json").write_text(json.dumps({**family.pictures, **pictures}))
    options = {**family.options, "processor_class": family.processor}
    (folder / "processor_config.json").write_text(json.dumps(options))
    template = (
        "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} answer : {% endif %}"
    )
    legacy = {"chat_template": template.replace("IMAGE", family.image)}
    (folder / "chat_template.json").write_text(json.dumps(legacy))
    return folder


# transformers' PaliGemmaProcessor makes a numpy array of a tensor in a way that numpy is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
PICTURES = [Image.linear_gradient("L").convert("RGB").resize(size) for size in ((20, 16), (48, 16))]


def inputs_of(processor: Any, image: str) -> dict[str, Any]:
    texts = [f"<s> {image} what colour is the shape ?", f"<s> {image} what ?"]
    pictures = [[picture] for picture in PICTURES]
    return dict(processor(text=texts, images=pictures, padding=True, return_tensors="pt"))


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


FAST = ("smolvlm",)


def marked(name: str) -> Any:
    """One family in one process, which shares its model; most of them with the other conformance tests."""
    group = pytest.mark.xdist_group(f"own {name}")
    return pytest.param(name, marks=[group] if name in FAST else [group, pytest.mark.conformance])


@pytest.fixture(scope="module", params=[marked(name) for name in FAMILIES])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Path, VLM]:
    family = FAMILIES[request.param]
    folder = write(tmp_path_factory.mktemp(request.param) / "model", family)
    return family, folder, load_vlm(folder, device="cpu")


def test_the_processor_is_the_models_own(loaded: tuple[Family, Path, VLM]) -> None:
    family, folder, vlm = loaded
    assert type(vlm.processor).__name__ == family.processor
    assert type(vlm.processor.image_processor).__name__ == family.image_processor
    inputs = inputs_of(vlm.processor, family.image)
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == family.counts
    assert set(family.marks) <= set(vlm.tokenizer.convert_ids_to_tokens(inputs["input_ids"][1]))
    assert same(inputs, inputs_of(AutoProcessor.from_pretrained(folder), family.image))
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    run = vlm.record(**inputs)
    with torch.no_grad():
        assert torch.equal(run.logits, plain(**inputs, use_cache=False).logits)
    vlm.self_test(run)
    mask = vlm.image_mask(inputs, run)
    assert mask is not None
    assert torch.equal(mask, inputs["input_ids"] == IMAGE)


@pytest.mark.slow
def test_what_is_saved_is_loaded_the_same(loaded: tuple[Family, Path, VLM], tmp_path: Path) -> None:
    family, _, vlm = loaded
    save(vlm, tmp_path / "saved")
    again = load_vlm(tmp_path / "saved", device="cpu")
    inputs = inputs_of(vlm.processor, family.image)
    assert type(again.processor) is type(vlm.processor)
    assert same(inputs, inputs_of(again.processor, family.image))
    assert same(inputs, inputs_of(AutoProcessor.from_pretrained(tmp_path / "saved"), family.image))
    assert again.processor.chat_template == vlm.processor.chat_template
    assert family.image in vlm.processor.chat_template
    assert torch.equal(again.record(**inputs).logits, vlm.record(**inputs).logits)
