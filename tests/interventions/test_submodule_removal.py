from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_hooks import layers, probs
from tiny_models import ITEMS, build, tiny_processor
from torch import nn

from vlalign_utils import VLM
from vlalign_utils.interventions.submodule_removal import (
    PARTS,
    SIDES,
    compression_sweep,
    removed,
    submodules,
)

CAPTIONED = [replace(item, caption="red circle .") for item in ITEMS]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@pytest.mark.slow
@pytest.mark.usefixtures("all_solved")
def test_sweep_equals_models_whose_last_projections_are_zero(vlm: VLM) -> None:
    found = compression_sweep(vlm, CAPTIONED, width=2, batch_size=3)
    assert list(found) == list(SIDES)
    projections = {"attention": ("self_attn.o_proj",), "MLP": ("mlp.down_proj",)}
    projections["both"] = projections["attention"] + projections["MLP"]
    assert list(projections) == list(PARTS)
    sides = {"images": CAPTIONED, "captions": [item.caption_version() for item in CAPTIONED]}
    for side, items in sides.items():
        assert found[side].clean == pytest.approx(probs(vlm, items), rel=1e-4)
        for name, zeroed in projections.items():
            for column, (first, last) in enumerate(found[side].windows):
                other = VLM(build("llava")[0].model, tiny_processor())
                for k in range(first, last + 1):
                    for projection in zeroed:
                        nn.init.zeros_(layers(other)[k].get_submodule(projection).weight)
                assert found[side].prob[name][:, column] == pytest.approx(probs(other, items), rel=1e-4)
                assert (found[side].drop(name)[:, column] != 0).all()


def test_what_was_removed_comes_back(vlm: VLM) -> None:
    before = probs(vlm, ITEMS)
    with suppress(KeyError), removed(vlm, 0, 3):
        assert (probs(vlm, ITEMS) != before).all()
        raise KeyError
    assert (probs(vlm, ITEMS) == before).all()


@torch.no_grad()
def test_without_both_parts_a_layer_passes_the_stream_on(vlm: VLM) -> None:
    streams: list[Any] = []
    with removed(vlm, 1, 1):
        handle = layers(vlm)[1].register_forward_hook(lambda m, args, out: streams.extend((args[0], out)))
        probs(vlm, ITEMS)
        handle.remove()
    assert torch.equal(*streams)


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "qwen3_vl", "mllama", "idefics"])
def test_both_submodules_are_found_in_every_family(family: str) -> None:
    for layer in build(family)[0].layers:
        found = submodules(layer)
        assert [type(m).__name__.endswith("MLP") for m in found["MLP"]] == [True]
        assert all("Attention" in type(m).__name__ for m in found["attention"])


def test_layers_without_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="Lfm2DecoderLayer has no attention"):
        submodules(build("lfm2_vl")[0].layers[0])


def test_a_bare_projection_is_no_mlp(vlm: VLM) -> None:
    layer = nn.Module()
    layer.self_attn = layers(vlm)[0].self_attn
    layer.fc1, layer.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)
    with pytest.raises(ValueError, match="no module of its own for its MLP"):
        submodules(layer)


def test_what_is_not_there_cannot_be_removed(vlm: VLM) -> None:
    with (
        pytest.raises(ValueError, match="'norm', expected some of attention, MLP"),
        removed(vlm, 0, 0, ["norm"]),
    ):
        pass
    with pytest.raises(IndexError, match="last is 4"), removed(vlm, 0, 4):
        pass
    with pytest.raises(ValueError, match="window of 9 layers"):
        compression_sweep(vlm, CAPTIONED, width=9)
