import numpy as np
import pytest
import torch

from vlalign_utils import load_suite, load_vlm
from vlalign_utils.compression import effects
from vlalign_utils.compression.bypass import fit_bypasses
from vlalign_utils.compression.calibration import calibrate
from vlalign_utils.compression.shorter import fit_replacement
from vlalign_utils.evidence.intervals import above_chance
from vlalign_utils.inference.scoring import evaluate

ITEMS = load_suite("attributes", 12)
TEXTS = [item.caption for item in ITEMS[:4]]


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("zoo/llava")


@pytest.fixture(scope="module")
def variants(vlm):
    found = calibrate(vlm, ITEMS)
    units = found.least("MLP", 1) + found.least("attention", 1, layers=[6, 7])
    return {
        "whole": effects.whole(vlm),
        "bypasses": effects.with_bypasses(fit_bypasses(vlm, ITEMS, units, found)),
        "gap": effects.with_gap(3, 2),
        "replaced": effects.with_gap(3, 2, fit_replacement(vlm, ITEMS, 3, 2)),
        "4 bits": effects.with_rounding([0, 1], 4),
    }


def test_scores_are_those_of_whole_forwards(vlm, variants):
    found = effects.scores(vlm, ITEMS, variants, batch_size=5)
    chance = np.array([item.chance for item in ITEMS])
    asked = {"images": ITEMS, "captions": [item.caption_version() for item in ITEMS]}
    for name, variant in variants.items():
        with variant.applied(vlm):
            for side, items in asked.items():
                expected = above_chance(evaluate(vlm, items).correct, chance)
                np.testing.assert_array_equal(found[side][name], expected, err_msg=name)


def test_losses_are_those_of_plain_forwards_of_one_text(vlm, variants):
    found = effects.text_losses(vlm, TEXTS, variants, batch_size=2)
    for row, text in enumerate(TEXTS):
        ids = vlm.tokenizer(text, return_tensors="pt")["input_ids"]
        for name, variant in variants.items():
            with torch.no_grad(), variant.applied(vlm):
                logits = vlm.model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
            assert found[name][row] == pytest.approx(float(loss), rel=1e-4), name


def test_one_token_predicts_nothing(vlm):
    with pytest.raises(ValueError, match="fewer than two tokens"):
        effects.text_losses(vlm, [""], {"whole": effects.whole(vlm)})
