from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from plain_hooks import inputs_of
from scipy.stats import spearmanr
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM, Patch, load_vlm
from vlalign_utils.data.minimal_pairs import minimal_pairs
from vlalign_utils.interventions import attribution

ANSWERS = ("blue square", "green", "red", "circle")
DONORS = [
    replace(item, image=Image.new("RGB", (16, 16), "purple"), answer=answer)
    for item, answer in zip(ITEMS, ANSWERS, strict=True)
]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def test_a_contrast_is_read_where_the_answers_part(vlm: VLM) -> None:
    found = attribution.attribution_sweep(vlm, ITEMS, DONORS, batch_size=3)
    words = vlm.tokenizer
    for i, (item, donor) in enumerate(zip(ITEMS, DONORS, strict=True)):
        inputs = inputs_of(vlm, [item])
        with torch.no_grad():
            logits = vlm.model(**inputs).logits[0]
        own, other = (
            words(text, add_special_tokens=False)["input_ids"] for text in (item.answer, donor.answer)
        )
        ids = inputs["input_ids"][0].tolist()
        first = max(k for k in range(len(ids)) if ids[k : k + len(own)] == own)
        apart = next(k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
        at = logits[first + apart - 1]
        assert found.clean[i] == pytest.approx(float(at[own[apart]] - at[other[apart]]), abs=1e-5)


def test_an_estimate_is_the_slope_of_a_small_patch(vlm: VLM) -> None:
    share = 1e-3
    found = attribution.attribution_sweep(vlm, ITEMS[:1], DONORS[:1])
    run, other, contrast = attribution._runs(
        vlm, ITEMS[:1], DONORS[:1], next(attribution.evaluation_batches(vlm, ITEMS[:1]))
    )
    clean = contrast.of(run.logits)
    for slot in range(vlm.n_layers + 1):
        for token in range(run.grid[1]):
            mask = torch.zeros(run.grid, dtype=torch.bool)
            mask[0, token] = True
            value = run.resid[slot] + share * (other.resid[slot] - run.resid[slot])
            with torch.no_grad():
                patched = vlm.replay(run, edits=[Patch(slot, mask, value)])
            lost = (clean - contrast.of(patched.logits)) / share
            assert found.by_token[0][slot, token] == pytest.approx(float(lost), abs=2e-2, rel=2e-2)


def test_groups_are_sums_over_their_tokens_whatever_the_batch(vlm: VLM) -> None:
    found = attribution.attribution_sweep(vlm, ITEMS, DONORS, batch_size=4)
    apart = attribution.attribution_sweep(vlm, ITEMS, DONORS, batch_size=1)
    for i in range(len(ITEMS)):
        assert found.by_token[i] == pytest.approx(apart.by_token[i], abs=1e-4)
        total = sum(values[i] for values in found.loss.values())
        assert total == pytest.approx(found.by_token[i].sum(1), abs=1e-4)  # what differs is in a group
    assert all(p.grad is None for p in vlm.model.parameters())


@pytest.mark.slow
def test_estimates_rank_positions_of_a_trained_model_as_patches_do() -> None:
    pairs = minimal_pairs(8)
    items, donors = [pair.item for pair in pairs], [pair.other for pair in pairs]
    found = attribution.check_attribution(load_vlm("zoo/llava"), items, donors, cells=12)
    assert found.measured.shape == (8, 12)
    assert spearmanr(found.estimated.ravel(), found.measured.ravel()).statistic > 0.6


def test_cells_are_measured_as_single_patches_are(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    draw = attribution._draw

    def seen(*given):
        drawn["cells"] = draw(*given)
        return drawn["cells"]

    monkeypatch.setattr(attribution, "_draw", seen)
    found = attribution.check_attribution(vlm, ITEMS[:2], DONORS[:2], cells=5, batch_size=2)
    (batch,) = attribution.evaluation_batches(vlm, ITEMS[:2], 2)
    slots, tokens = drawn["cells"]
    for i, row in enumerate(batch.rows):
        (one,) = attribution.evaluation_batches(vlm, [ITEMS[row]])
        run, other, contrast = attribution._runs(vlm, [ITEMS[row]], [DONORS[row]], one)
        padding = tokens.new_tensor(batch.inputs["input_ids"].shape[1] - run.grid[1])
        for cell in range(5):
            mask = torch.zeros(run.grid, dtype=torch.bool)
            mask[0, tokens[i, cell] - padding] = True
            slot = int(slots[i, cell])
            patched = vlm.replay(run, edits=[Patch(slot, mask, other.resid[slot])])
            lost = contrast.of(run.logits) - contrast.of(patched.logits)
            assert found.measured[row, cell] == pytest.approx(float(lost.detach()), abs=1e-4)
    assert np.isfinite(found.estimated).all()


def test_donors_that_do_not_fit_are_named(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="4 items but 1 donors"):
        attribution.attribution_sweep(vlm, ITEMS, DONORS[:1])
    with pytest.raises(ValueError, match="fewer than 9999 cells"):
        attribution.check_attribution(vlm, ITEMS[:1], DONORS[:1], cells=9999)
