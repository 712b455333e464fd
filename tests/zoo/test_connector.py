"""What lies between tower and text model, in classes whose names for it differ."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_models import TEXT, build
from torch import nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from vlalign_utils import VLM
from vlalign_utils.zoo.connector import given_to, linears, parameters, token_features

CELLS = 5  # along a side


@pytest.fixture(scope="module")
def shuffled() -> VLM:
    """Idefics3 with 5 x 5 image tokens of four patches each."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**sizes, "image_size": 40, "patch_size": 4},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=63,
        scale_factor=2,
    )
    model: Any = Idefics3ForConditionalGeneration(config)
    return VLM(model.eval())


def test_a_projector_of_two_layers() -> None:
    vlm, inputs = build("llava")
    model: Any = vlm.model
    projector = model.model.multi_modal_projector
    assert linears(vlm) == [projector.linear_1, projector.linear_2]
    assert set(parameters(vlm)) == {
        f"model.multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    }
    features = token_features(vlm, inputs["pixel_values"])
    assert features.shape == (2, 4, 16)
    expected = model.get_image_features(inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(projector(features), torch.stack(list(expected)))


def test_one_matrix_after_a_pixel_shuffle(shuffled: VLM) -> None:
    model: Any = shuffled.model
    assert [(m.in_features, m.bias) for m in linears(shuffled)] == [(32, None)]
    assert list(parameters(shuffled)) == ["model.connector.modality_projection.proj.weight"]
    features = token_features(shuffled, torch.rand(3, 1, 3, 40, 40))
    assert features.shape == (3, CELLS**2, 32)
    assert features.requires_grad
    assert not linears(shuffled)[0]._forward_pre_hooks
    assert model.dtype == features.dtype


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 3), (4, 2)])
def test_features_of_tokens_stand_row_by_row(shuffled: VLM, row: int, column: int) -> None:
    """Without its layers the tower mixes no places: the token that changes is that of the changed cell."""
    model: Any = deepcopy(shuffled.model)
    model.model.vision_model.encoder.layers = nn.ModuleList()
    vlm = VLM(model)
    image = torch.full((1, 1, 3, 40, 40), 0.5)
    other = image.clone()
    other[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = -0.5
    changed = (token_features(vlm, image) != token_features(vlm, other)).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [row * CELLS + column]


def test_calls_are_seen_while_the_block_runs_only() -> None:
    layer, x = nn.Linear(2, 2), torch.rand(3, 2)
    assert given_to(layer, lambda: layer(x)) == [x]
    assert given_to(layer, lambda: None) == []
    assert not layer._forward_pre_hooks
