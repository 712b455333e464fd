"""Prompts and answers of the hub's templates and tokenizers: their texts, tokens and ends."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hub_templates as hub
import pytest
import torch
from PIL import Image
from tiny_models import VISION
from transformers import (
    ByT5Tokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from vlalign_utils import VLM
from vlalign_utils.data.items import Item
from vlalign_utils.driver.turns import end_ids, write_turns
from vlalign_utils.inference import scoring
from vlalign_utils.inference.answers import answer_mask

PROMPT = "what colour is the shape?"


@dataclass(frozen=True)
class Case:
    """A template, what it writes after PROMPT, and what stops generation."""

    template: str
    tokenizer: str
    eos: str
    stops: tuple[str, ...]
    image: bool
    prompt_end: str  # how the prompt ends as generate is given it
    said: str  # what the model has to write then


CASES = {
    "gemma3": Case(
        hub.GEMMA3,
        "byte_level",
        "</s>",
        ("</s>", "<end_of_turn>"),
        True,
        "<end_of_turn>\n<start_of_turn>model\n",
        "{}<end_of_turn>",
    ),
    "gemma3 with prefix spaces": Case(
        hub.GEMMA3,
        "prepending",
        "</s>",
        ("</s>", "<end_of_turn>"),
        True,
        "<end_of_turn>\n<start_of_turn>model\n",
        "{}<end_of_turn>",
    ),
    "smollm2": Case(
        hub.SMOLLM2,
        "byte_level",
        "</s>",
        ("<|im_end|>",),
        False,
        "<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>",
    ),
    "idefics3": Case(
        hub.IDEFICS3,
        "byte_level",
        "</s>",
        ("<end_of_utterance>",),
        True,
        "<end_of_utterance>\nAssistant:",
        " {}<end_of_utterance>",
    ),
    "llava 1.5": Case(hub.LLAVA15, "prepending", "</s>", ("</s>",), True, " ASSISTANT:", " {}</s>"),
    "llava 1.5 of whole words": Case(
        hub.LLAVA15, "word_piece", "</s>", ("</s>",), True, " ASSISTANT:", " {}</s>"
    ),
    "llava 1.5 without an eos of its own": Case(
        hub.LLAVA15, "metaspace", "</s>", ("<|eot_id|>",), True, " ASSISTANT:", " {}<|eot_id|>"
    ),
    "qwen2": Case(
        hub.QWEN2VL,
        "byte_level",
        "<|im_end|>",
        ("<|im_end|>", "</s>"),
        True,
        "<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>",
    ),
    "qwen2 that does not stop there": Case(
        hub.QWEN2VL,
        "metaspace",
        "</s>",
        (),
        True,
        "<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>",
    ),
    "mistral": Case(hub.MISTRAL, "metaspace", "</s>", ("</s>",), False, " [/INST]", " {}</s>"),
    "llama 3": Case(
        hub.LLAMA3,
        "byte_level",
        "</s>",
        ("</s>", "<|eot_id|>"),
        False,
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
    ),
    "thinking": Case(
        hub.THINKING,
        "byte_level",
        "</s>",
        ("<|im_end|>",),
        True,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "{}<|im_end|>",
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


def speaker(tokenizer: Any, chain: list[int], stops: list[int]) -> LlavaForConditionalGeneration:
    """A model that writes each token of the chain after the one before it, whatever else it reads."""
    width = -(-len(tokenizer) // 8) * 8
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 4,
            "vocab_size": width,
            "pad_token_id": 0,
        },
        image_token_index=tokenizer.get_vocab().get("<image>", 5),
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    plant(model.model.language_model, model.lm_head, chain)
    model.generation_config.eos_token_id = stops or None
    model.generation_config.pad_token_id = 0
    return model


def plant(decoder: Any, head: torch.nn.Linear, chain: list[int]) -> None:
    """Layers that add nothing, words at right angles, and a head that knows what follows each."""
    with torch.no_grad():
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        decoder.embed_tokens.weight.copy_(torch.eye(*decoder.embed_tokens.weight.shape))
        head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
        for one, following in pairwise(chain):
            head.weight[following, one] = 5.0


def pictures(case: Case, n: int) -> list[Image.Image] | None:
    return [Image.new("RGB", (16, 16), (40 * i, 90, 160)) for i in range(n)] if case.image else None


def made(case: Case, answer: str) -> VLM:
    """A model that gives `answer` to whatever it is asked in this case's form."""
    tokenizer = hub.hub_tokenizer(case.tokenizer, case.template, case.eos)
    text = case.prompt_end + case.said.format(answer)
    before, whole = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (case.prompt_end, text)
    )
    assert whole[: len(before)] == before
    model = speaker(
        tokenizer, whole[len(before) - 1 :], [tokenizer.convert_tokens_to_ids(stop) for stop in case.stops]
    )
    return VLM(model, hub.hub_processor(tokenizer) if case.image else tokenizer)


@pytest.mark.slow_except("blue square")
@each_case
@pytest.mark.parametrize("answer", ["red", "blue square"])
def test_turns_are_scored_as_generate_writes_them(name: str, answer: str) -> None:
    case = CASES[name]
    vlm = made(case, answer)
    answers = [answer, "green", answer, answer]
    prompts = [PROMPT, PROMPT, "is it red or blue?", "what?"]
    images = pictures(case, 4)
    items = [
        Item(None if images is None else images[i], prompts[i], answers[i], (), "g", "") for i in range(4)
    ]
    inputs = vlm.prepare(prompts, images)
    out = vlm.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    written = out[:, inputs["input_ids"].shape[1] :]
    texts = vlm.tokenizer.batch_decode(written, skip_special_tokens=True)
    if not case.stops:  # the template's end does not stop it
        texts = [vlm.tokenizer.decode(row).split("<|im_end|>")[0] for row in written]
    right = [text.strip() == said for text, said in zip(texts, answers, strict=True)]
    assert right == [True, False, True, True]
    scores = scoring.evaluate(vlm, items, batch_size=2)
    assert scores.correct.tolist() == right
    assert scores.prob.round(3).tolist() == right
    (batch,) = scoring.batches(vlm, items)
    for row, marked in zip(batch.rows, batch.answers, strict=True):
        tokens = marked[marked >= 0]
        if right[row]:
            assert tokens.tolist() == written[row, : len(tokens)].tolist()


@each_case
@pytest.mark.parametrize("kind", hub.KINDS)
def test_marked_tokens_hold_the_answer_and_its_end_and_nothing_of_the_prompt(name: str, kind: str) -> None:
    case = CASES[name]
    tokenizer = hub.hub_tokenizer(kind, case.template, case.eos)
    model = speaker(tokenizer, [], [tokenizer.convert_tokens_to_ids(stop) for stop in case.stops])
    vlm = VLM(model, hub.hub_processor(tokenizer) if case.image else tokenizer)
    prompts, answers = [PROMPT, "is it red?"], ["blue square", "red"]
    images = pictures(case, 2)
    inputs = vlm.prepare(prompts, images, answers)
    mask = answer_mask(vlm, inputs, prompts, images, answers)
    asked = [turn.text for turn in write_turns(vlm.processor, prompts, None, case.image, [])]
    for i, (answer, ids) in enumerate(zip(answers, inputs["input_ids"], strict=True)):
        end = case.said.format("")
        whole = asked[i] + case.said.format(answer)
        assert asked[i].endswith(case.prompt_end)
        encoding = tokenizer(whole, add_special_tokens=not whole.startswith("<s>"))
        first = encoding.char_to_token(len(whole) - len(answer + end.strip()))
        own = encoding["input_ids"]
        before = tokenizer(asked[i], add_special_tokens=not whole.startswith("<s>"))["input_ids"]
        if own[: len(before)] == before:  # a space between prompt and answer is the model's to write
            first = min(first, len(before))
        assert ids[mask[i]].tolist() == own[first:]
        assert mask[i, -len(own[first:]) :].all()
        read = "".join(tokenizer.decode(ids[mask[i]]).split())
        assert read == "".join((answer + end).split()) or kind == "metaspace"
        assert read.endswith("".join((answer + end).split()))


def test_a_token_that_holds_prompt_and_answer_is_the_answer_s() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # no role, no end, no space
    tokenizer = hub.hub_tokenizer("byte_level", template)
    vlm = VLM(speaker(tokenizer, [], []), tokenizer)
    inputs = vlm.prepare(["is it re"], answers=["d circle"])
    found = answer_mask(vlm, inputs, ["is it re"], None, ["d circle"])
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][found]) == [
        "\u0120red",
        "\u0120circle",
        "</s>",
    ]


def test_a_token_behind_the_answer_belongs_to_neither() -> None:
    tokenizer = hub.hub_tokenizer("byte_level", hub.LLAVA15)
    names = tokenizer.get_vocab()
    tokenizer.backend_tokenizer.post_processor = hub.processors.TemplateProcessing(
        single="<s> $A <|eot_id|>", special_tokens=[(t, names[t]) for t in ("<s>", "<|eot_id|>")]
    )
    vlm = VLM(speaker(tokenizer, [], []), tokenizer)
    inputs = vlm.prepare(["what?"], answers=["red"])
    found = answer_mask(vlm, inputs, ["what?"], None, ["red"])
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][found]) == ["\u0120red", "</s>"]
    assert found[0].tolist()[-3:] == [True, True, False]


@pytest.mark.parametrize("name", ["idefics3", "llama 3"])
def test_without_offsets_texts_are_compared(name: str) -> None:
    """ByT5 reads bytes, in Python, and puts its end behind every text."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = CASES[name].template.replace("bos_token", "''")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_utterance>", "<|eot_id|>"]})
    ends = tokenizer.convert_tokens_to_ids(["<end_of_utterance>", "<|eot_id|>"])
    vlm = VLM(speaker(tokenizer, [], ends), tokenizer)
    inputs = vlm.prepare(["what?", "is it red?"], answers=["red", "blue"])
    found = answer_mask(vlm, inputs, ["what?", "is it red?"], None, ["red", "blue"])
    said = [tokenizer.decode(row[own]) for row, own in zip(inputs["input_ids"], found, strict=True)]
    assert said == [CASES[name].said.format(answer) for answer in ("red", "blue")]


class Backwards:
    """A tokenizer that numbers letters from the right: an answer changes how its prompt is read."""

    is_fast, bos_token, eos_token, eos_token_id = False, None, "!", 33
    chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    def apply_chat_template(self, chats: Any, **kwargs: Any) -> list[str]:
        return ["".join(part["text"] for turn in chat for part in turn["content"]) for chat in chats]

    def decode(self, ids: list[int]) -> str:
        return "!"

    def __call__(self, text: str | list[str], add_special_tokens: bool, **kwargs: Any) -> dict[str, Any]:
        (one,) = [text] if isinstance(text, str) else text
        ids = [ord(letter) + 1000 * i for i, letter in enumerate(reversed(one))][::-1]
        return {"input_ids": ids if isinstance(text, str) else torch.tensor([ids])}


def test_without_offsets_a_prompt_that_reads_otherwise_before_an_answer_is_refused() -> None:
    vlm = VLM(speaker(hub.hub_tokenizer("word_piece", None), [], []), Backwards())
    inputs = vlm.prepare(["what?"], answers=["red"])
    with pytest.raises(
        ValueError, match="Backwards has no character offsets, and writes the prompt otherwise"
    ):
        answer_mask(vlm, inputs, ["what?"], None, ["red"])


def test_what_ends_a_turn_is_the_model_s_own_first() -> None:
    tokenizer = hub.hub_tokenizer("word_piece", None)
    eos, eot = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")
    model = speaker(tokenizer, [], [])
    for given, expected in ((None, [eos]), (eot, [eot, eos]), ([eot, eos], [eos, eot]), ([eos], [eos])):
        model.generation_config.eos_token_id = given
        assert end_ids(model, tokenizer) == expected


def test_templates_that_cannot_be_used_are_refused() -> None:
    def turns(template: str | None, image: bool = False, ends: tuple[int, ...] = (2,)) -> Any:
        processor = hub.hub_processor(hub.hub_tokenizer("word_piece", template))
        return write_turns(processor, ["what?"], ["Red"], image, ends)

    with pytest.raises(ValueError, match="takes text alone and has no place for an image"):
        turns(hub.SMOLLM2, image=True)
    with pytest.raises(ValueError, match="writes no text of a user"):
        turns("{{ bos_token }}hello")
    with pytest.raises(ValueError, match="writes the answer 'Red' otherwise than given"):
        turns("{% for m in messages %}{{ m['content'][0]['text'] | replace('R', 'r') }}{% endfor %}")
    with pytest.raises(ValueError, match="says which token ends a turn: set eos_token_id"):
        turns(hub.LLAVA15, ends=())


def paligemma() -> tuple[VLM, Any]:
    """A tiny PaliGemma that answers "red" after a line's end, and its own processor, without a template."""
    tokenizer = hub.hub_tokenizer("byte_level", None)
    pictures = SiglipImageProcessor(size={"height": 16, "width": 16})
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor=pictures, tokenizer=tokenizer)
    width = -(-len(tokenizer) // 8) * 8
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={
            "model_type": "gemma",
            "hidden_size": width,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "vocab_size": width,
            "pad_token_id": 0,
        },
        image_token_index=processor.image_token_id,
        projection_dim=width,
    )
    model = PaliGemmaForConditionalGeneration(config).eval()
    chain = tokenizer("\nred</s>", add_special_tokens=False)["input_ids"]
    plant(model.model.language_model, model.lm_head, chain)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return VLM(model, processor), processor


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' own
def test_without_a_template_the_processor_s_own_format_is_used() -> None:
    vlm, processor = paligemma()
    prompts, answers = [PROMPT, "what?"], ["red", "blue"]
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for said in (None, answers):
        extra = {} if said is None else {"suffix": said}
        expected = processor(
            text=[f"<image>{prompt}" for prompt in prompts],
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **extra,
        )
        inputs = vlm.prepare(prompts, images, said)
        assert set(inputs) == set(expected) - {"labels"}
        for key, value in inputs.items():
            assert torch.equal(value, expected[key]), key
    mask = answer_mask(vlm, inputs, prompts, images, answers)
    assert torch.equal(mask, inputs["token_type_ids"] == 1)
    assert torch.equal(mask, expected["labels"] != -100)
    items = [Item(images[i], prompts[i], answers[i], (), "g", "") for i in range(2)]
    assert scoring.evaluate(vlm, items).correct.tolist() == [1, 0]
    assert scoring.descriptions(vlm, items) == ["red", "red"]


def test_a_processor_that_inserts_image_tokens_itself_gets_none() -> None:
    tokenizer = hub.hub_tokenizer("byte_level", None)

    class Inserting:
        """As BLIP-2's: the tokens of an image stand before its text, whatever the text holds."""

        def __init__(self) -> None:
            self.tokenizer: PreTrainedTokenizerFast = tokenizer
            self.image_token = "<image>"

        def __call__(self, text: list[str], images: Any = None, **kwargs: Any) -> Any:
            return tokenizer([f"<image><image>{one}" for one in text] if images else text, **kwargs)

    vlm = VLM(speaker(tokenizer, [], []), Inserting())
    image = Image.new("RGB", (16, 16))
    inputs = vlm.prepare(["what?"], [image], ["red"])
    assert tokenizer.decode(inputs["input_ids"][0]) == "<image><image>what? red</s>"
    found = answer_mask(vlm, inputs, ["what?"], [image], ["red"])
    assert tokenizer.decode(inputs["input_ids"][found]) == " red</s>"


def test_an_answer_that_the_processor_writes_otherwise_is_refused() -> None:
    case = CASES["gemma3"]
    vlm = made(case, "red")
    inputs = vlm.prepare(["what?"], answers=["red"])
    other = {**inputs, "input_ids": inputs["input_ids"].roll(1, dims=1)}
    with pytest.raises(
        ValueError, match=r"LlavaProcessor writes answers\[0\], 'red', otherwise than its tok"
    ):
        answer_mask(vlm, other, ["what?"], None, ["red"])
