import numpy as np
import pytest
import torch
from plain_hooks import inputs_of
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM, load_suite, load_vlm
from vlalign_utils.analysis.attention_share import QUERIES, attention_share
from vlalign_utils.driver.attention_backend import attention_in_use


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@torch.no_grad()
def test_shares_are_those_of_the_weights_that_transformers_returns(vlm: VLM) -> None:
    found = attention_share(vlm, ITEMS, batch_size=3)
    eager, _ = build("llava")
    eager.model.set_attn_implementation("eager")
    for row, item in enumerate(ITEMS):
        inputs = inputs_of(vlm, [item])
        weights = eager.model(**inputs, output_attentions=True).attentions
        ids = inputs["input_ids"][0]
        image = ids == vlm.model.config.image_token_id
        first = len(ids) - 1 - len(item.answer.split())  # of the answer, whose end is a token too
        rows = {"question": slice(int(image.nonzero().max()) + 1, first - 1), "last": slice(first - 1, first)}
        for layer, given in enumerate(weights):
            paid = given[0].mean(0)[:, image].sum(-1)
            for name, queries in rows.items():
                assert found.share[name][row, layer] == pytest.approx(float(paid[queries].mean()), abs=1e-5)
        for name, queries in rows.items():
            visible = torch.arange(len(ids)) + 1
            expected = (image.sum() / visible)[queries].mean()
            assert found.even[name][row] == pytest.approx(float(expected), abs=1e-6)


def test_the_models_own_attention_comes_back(vlm: VLM) -> None:
    vlm.model.set_attn_implementation("sdpa")
    attention_share(vlm, ITEMS[:1])
    assert attention_in_use(vlm.layers) == {"sdpa"}


def test_images_without_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="does not allow image_positions"):
        attention_share(load_vlm("zoo/mllama"), load_suite("attributes", 2))


@pytest.mark.slow
def test_layers_that_attend_otherwise_have_no_share() -> None:
    found = attention_share(load_vlm("zoo/qwen3vl"), load_suite("attributes", 2))
    assert all(np.isfinite(found.share[name]).all() for name in QUERIES)
