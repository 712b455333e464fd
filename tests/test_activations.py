import pytest
import torch
from PIL import Image
from tiny_models import build, tiny_processor
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.activations import collect, last_true, pair_states
from vlalign_utils.data import pairs
from vlalign_utils.data.language import describe

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
    scenes = pairs(3, max_things=1)
    states = pair_states(vlm, scenes, batch_size=2)
    assert set(states) == {"image", "last_image", "text", "last"}
    resid, is_image = alone(vlm, describe("en"), scenes[1].image)
    assert torch.allclose(states["image"][:, 1], resid[:, is_image].mean(1), atol=1e-4)
    resid, _ = alone(vlm, scenes[1].caption["en"], None)
    assert torch.allclose(states["text"][:, 1], resid.mean(1), atol=1e-4)


def test_result_is_plain_float32_without_a_graph(vlm: VLM) -> None:
    states = collect(vlm, PROMPTS, IMAGES, ["last"])["last"]
    assert states.dtype == torch.float32
    assert not states.requires_grad


def test_progress_is_one_line(vlm: VLM, capsys: pytest.CaptureFixture[str]) -> None:
    collect(vlm, PROMPTS, None, ["last"], batch_size=2, label="captions")
    assert capsys.readouterr().out == "captions: 2/2\n"


def test_last_true_of_padded_rows() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    assert (
        last_true(mask).tolist() == torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool().tolist()
    )
