from dataclasses import replace

import pytest
import torch
from PIL import Image
from plain_hooks import probs
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM, load_suite, load_vlm
from vlalign_utils.driver import recording
from vlalign_utils.driver.edits import FreezeTokens, Knockout, Patch
from vlalign_utils.inference.scoring import answer_scores, batches
from vlalign_utils.interventions import image_access
from vlalign_utils.interventions.sweep import positions

OTHERS = [replace(item, image=Image.new("RGB", (16, 16), "purple")) for item in ITEMS]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


@torch.no_grad()
@pytest.mark.usefixtures("all_solved")
def test_every_edit_equals_a_whole_forward(vlm: VLM) -> None:
    n = vlm.n_layers
    swept = image_access.access_sweep(vlm, ITEMS, seed=5, batch_size=3)
    assert swept.windows == [(k, k) for k in range(n + 1)]
    for batch in batches(vlm, ITEMS, 3):
        run = vlm.record(**batch.inputs)
        at = positions(vlm, run, batch, 5)
        words, zero = at.question | at.last, torch.zeros(vlm.d_model)
        for k in range(n + 1):
            expected = {
                "image zeroed": [Patch(k, at.image, zero)],
                "some image tokens zeroed": [Patch(k, at.some_image, zero)],
                "as many text tokens zeroed": [Patch(k, at.some_text, zero)],
                "image frozen": [FreezeTokens(k, n - 1, at.image)][: n - k],
                "image cut off": [Knockout(k, n - 1, words, at.image)][: n - k],
                "image inserted": [
                    FreezeTokens(0, k - 1, at.image),
                    Knockout(0, k - 1, words, at.image),
                ][: 2 * k],
                "image zeroed in one layer": [
                    Patch(k, at.image, zero),
                    Patch(k + 1, at.image, run.resid[min(k + 1, n)]),
                ][: 2 * (k < n)],
            }
            assert expected.keys() == swept.prob.keys()
            for name, edits in expected.items():
                logits = recording.forward(vlm.anatomy, batch.inputs, edits).logits
                scores = answer_scores(logits, batch.answers)
                assert swept.prob[name][batch.rows, k] == pytest.approx(scores.prob, rel=1e-4)


@pytest.mark.usefixtures("all_solved")
def test_an_image_that_comes_after_the_last_layer_is_not_seen(vlm: VLM) -> None:
    found, other = (image_access.access_sweep(vlm, items) for items in (ITEMS, OTHERS))
    name = image_access.INSERTED
    assert found.prob[name][:, -1] == pytest.approx(other.prob[name][:, -1], rel=1e-5)
    assert found.prob[name][:, 0] == pytest.approx(probs(vlm, ITEMS), rel=1e-4)
    assert found.prob["image zeroed"][:, 0] == pytest.approx(other.prob["image zeroed"][:, 0], rel=1e-5)
    for gone in image_access.FROM:
        if gone != "as many text tokens zeroed":
            assert found.prob[gone][:, -1] == pytest.approx(found.clean, rel=1e-5)


def test_images_without_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="does not allow image_positions"):
        image_access.access_sweep(load_vlm("zoo/mllama"), load_suite("attributes", 2))
