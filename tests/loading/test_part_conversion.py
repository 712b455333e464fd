"""Conversions against the files they start from, read by other means."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import timm
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from vlalign_utils.loading.part_conversion import TIMM_NAME, convert_efficientnet
from vlalign_utils.loading.parts import LANGUAGE_MODEL, VISION_TOWER, part_folder, published_file

GPT2 = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)  # Radford et al. 2019
TEXTS = [
    "Once upon a time there was a little dog, who didn't like   the rain.",
    "In 1984,  12 345 people paid $1,234.50 for x² + y³ = ½ (about 50 %).\n\n 7\t8\r\n9",
    "Übergrößenträger, naïve café, Ελληνικά, русский, 日本語の文章, العربية, हिन्दी, ไทย",
    "def f(x):\n    return x ** 2  # 🦊🏳️‍🌈 e\u0301 \u00a0 \u200b|<im_start>",
    " leading and trailing ",
]
CHAT = "<|im_start|>user\n<empty_output>What is 3 4?<|im_end|>\n<|im_start|>assistant\n3<|im_end|>"


@cache
def gguf() -> GGUFReader:
    return GGUFReader(published_file(LANGUAGE_MODEL))


@pytest.mark.slow
def test_weights_are_those_of_the_file() -> None:
    raw = {tensor.name: tensor for tensor in gguf().tensors}
    ours = load_file(part_folder(LANGUAGE_MODEL.name) / "model.safetensors")

    def expected(name: str, heads: int | None = None) -> torch.Tensor:
        weight = torch.from_numpy(dequantize(raw[name].data, raw[name].tensor_type).copy())
        if heads is not None:  # llama.cpp has the two halves of each rotation side by side
            weight = weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        return weight.to(torch.bfloat16)

    layer = ours["model.layers.7.self_attn.q_proj.weight"]
    assert len(ours) == len(raw)
    assert torch.equal(ours["model.embed_tokens.weight"], expected("token_embd.weight"))
    assert torch.equal(ours["model.layers.29.mlp.down_proj.weight"], expected("blk.29.ffn_down.weight"))
    assert torch.equal(layer, expected("blk.7.attn_q.weight", 9))
    assert torch.equal(ours["model.layers.7.self_attn.k_proj.weight"], expected("blk.7.attn_k.weight", 3))
    assert torch.equal(ours["model.norm.weight"], expected("output_norm.weight"))


@pytest.mark.slow
def test_the_tokenizer_is_that_of_the_file() -> None:
    """Byte-pair encoding written down a second time, from the file's own merges."""
    fields = gguf().fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"  # digits one by one, then as GPT-2
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    ranks = {pair: rank for rank, pair in enumerate(fields["tokenizer.ggml.merges"].contents())}
    ids = {token: i for i, token in enumerate(tokens)}
    loaded = AutoTokenizer.from_pretrained(part_folder(LANGUAGE_MODEL.name))

    def encode(text: str) -> list[int]:
        pieces = [found for part in regex.findall(r"\p{N}|\P{N}+", text) for found in GPT2.findall(part)]
        return [ids[token] for piece in pieces for token in merge(piece)]

    def merge(piece: str) -> list[str]:
        byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
        symbols = list(byte_level.pre_tokenize_str(piece)[0][0])
        while len(symbols) > 1:
            pairs = [ranks.get(f"{a} {b}", len(ranks)) for a, b in pairwise(symbols)]
            if (best := min(pairs)) == len(ranks):
                break
            at = pairs.index(best)
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        return symbols

    for text in TEXTS:
        assert loaded(text).input_ids == encode(text)
        assert loaded.decode(loaded(text).input_ids, clean_up_tokenization_spaces=False) == text
    assert loaded.convert_ids_to_tokens(list(range(len(loaded)))) == tokens
    assert loaded(CHAT).input_ids[:3] == [1, *encode("user")[:1], *encode("\n")]
    assert [i for i in loaded(CHAT).input_ids if i < 17] == [1, 16, 2, 1, 2]
    assert loaded.decode(loaded(CHAT).input_ids, skip_special_tokens=False) == CHAT


@pytest.mark.slow
def test_turns_end_where_generation_stops() -> None:
    folder = part_folder(LANGUAGE_MODEL.name)
    loaded = AutoTokenizer.from_pretrained(folder)
    turns = loaded.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], tokenize=False
    )
    assert turns.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n")
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == loaded.eos_token_id == loaded.convert_tokens_to_ids("<|im_end|>") == 2
    assert loaded.convert_tokens_to_ids("<empty_output>") == 16


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Random weights of timm's model under other names, in its order."""
    weights = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    return {f"_{i}.{name.rpartition('.')[2]}": weight for i, (name, weight) in enumerate(weights.items())}


@pytest.mark.slow
def test_the_tower_is_timms_with_the_weights_in_its_order(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "state.pth")
    convert_efficientnet(tmp_path / "state.pth", tmp_path)
    ours = load_file(tmp_path / "model.safetensors")
    names = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    assert set(ours) == {f"timm_model.{name}" for name in names}
    for name, weight in zip(names, state.values(), strict=True):
        assert torch.equal(ours[f"timm_model.{name}"], weight.to(ours[f"timm_model.{name}"].dtype))


@pytest.mark.slow
def test_real_weights_in_timms_own_model() -> None:
    ours = load_file(part_folder(VISION_TOWER.name) / "model.safetensors")
    theirs = torch.load(published_file(VISION_TOWER), weights_only=True)
    plain = timm.create_model(TIMM_NAME, pretrained=False)
    plain.load_state_dict(dict(zip(plain.state_dict(), theirs.values(), strict=True)))
    for name, weight in plain.state_dict().items():
        assert torch.equal(ours[f"timm_model.{name}"], weight.to(ours[f"timm_model.{name}"].dtype)), name


@pytest.mark.slow_except("shape")
@pytest.mark.parametrize("change", ["shape", "name", "number"])
def test_weights_that_do_not_fit_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, change: str
) -> None:
    first: Any = next(iter(state))
    if change == "number":
        del state[first]
    elif change == "shape":
        state[first] = torch.zeros(1)
    else:
        state = {name.replace("_0.weight", "_0.bias"): weight for name, weight in state.items()}
    torch.save(state, tmp_path / "state.pth")
    with pytest.raises(
        ValueError, match=r"state\.pth does not hold the weights of timm's tf_efficientnet_lite0"
    ):
        convert_efficientnet(tmp_path / "state.pth", tmp_path)
