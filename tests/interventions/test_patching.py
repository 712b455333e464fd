from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from plain_hooks import inputs_of, places, probs, states
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.data.items import Item
from vlalign_utils.data.minimal_pairs import minimal_pairs
from vlalign_utils.inference.scoring import Scores
from vlalign_utils.interventions import caption_patching, patching, sweep
from vlalign_utils.interventions.backpatching import backpatch_sweep

ANSWERS = ("blue square", "green", "red", "circle")
DONORS = [
    replace(item, image=Image.new("RGB", (16, 16), "purple"), answer=answer)
    for item, answer in zip(ITEMS, ANSWERS, strict=True)
]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def masks(vlm: VLM, items: list[Item]) -> dict[str, torch.Tensor]:
    return places(items, inputs_of(vlm, items)["input_ids"])


@pytest.mark.usefixtures("all_solved")
@pytest.mark.slow
def test_exchange_reads_both_answers_as_plain_hooks_do(vlm: VLM) -> None:
    found = patching.exchange_sweep(vlm, ITEMS, DONORS, batch_size=3)
    assert found.rows == [0, 1, 2, 3]
    for swept, answers in ((found.own, ITEMS), (found.other, DONORS)):
        items, donors = (
            [replace(i, answer=a.answer) for i, a in zip(side, answers, strict=True)]
            for side in (ITEMS, DONORS)
        )
        assert swept.clean == pytest.approx(probs(vlm, items), rel=1e-4)
        there = states(vlm, donors)
        for name, mask in masks(vlm, items).items():
            for slot in range(vlm.n_layers + 1):
                expected = probs(vlm, items, slot, mask, there[slot][mask])
                assert swept.prob[name][:, slot] == pytest.approx(expected, rel=1e-4)
        # All that the picture changed, put in at once: the donor's own run.
        assert swept.prob["image"][:, 0] == pytest.approx(probs(vlm, donors), rel=1e-4)
    assert (found.own.gain("last")[:, -1] != 0).all()


@pytest.mark.slow
def test_only_items_with_both_pictures_answered_are_exchanged(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = {id(ITEMS): [1, 1, 0, 1], id(DONORS): [1, 0, 1, 1]}
    monkeypatch.setattr(
        sweep, "evaluate", lambda vlm, items, size: Scores(np.array(solved[id(items)]) * 1.0, np.ones(4))
    )
    found = patching.exchange_sweep(vlm, ITEMS, DONORS, ("last",))
    assert found.rows == [0, 3]
    kept = [replace(ITEMS[row], answer=DONORS[row].answer) for row in found.rows]
    assert found.other.clean == pytest.approx(probs(vlm, kept), rel=1e-4)


def test_donors_must_ask_the_same_and_answer_otherwise(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="4 items but 1 donors"):
        patching.exchange_sweep(vlm, ITEMS, DONORS[:1])
    with pytest.raises(ValueError, match=r"\(red\) asks 'what colour is the shape \?' \(red\)"):
        patching.exchange_sweep(vlm, ITEMS, ITEMS)
    with pytest.raises(ValueError, match="'imge', expected some of image"):
        patching.exchange_sweep(vlm, ITEMS, DONORS, ("imge",))


def test_items_of_minimal_pairs_fit_the_exchange() -> None:
    pairs = minimal_pairs(6)
    items, donors = [pair.item for pair in pairs], [pair.other for pair in pairs]
    for item, donor in zip(items, donors, strict=True):
        assert item.prompt == donor.prompt
        assert item.answer != donor.answer
        assert item.choices == donor.choices
        assert item.image != donor.image
        assert item.caption != donor.caption


CAPTIONED = [
    replace(item, caption=caption)
    for item, caption in zip(
        ITEMS, ("red circle .", "green .", "the blue square is blue .", "red ."), strict=True
    )
]


@pytest.mark.slow
@pytest.mark.usefixtures("all_solved")
def test_states_of_captions_and_pictures_are_exchanged_as_plain_hooks_do(vlm: VLM) -> None:
    found = caption_patching.caption_sweep(vlm, CAPTIONED, seed=1, batch_size=4)
    control = caption_patching._others(CAPTIONED, 1)
    assert all(CAPTIONED[a].answer != CAPTIONED[b].answer for a, b in enumerate(control))
    sides = {"image": CAPTIONED, "caption": [item.caption_version() for item in CAPTIONED]}
    for name, (giver, receiver) in zip(
        caption_patching.DIRECTIONS, (("caption", "image"), ("image", "caption")), strict=True
    ):
        items = sides[receiver]
        assert found[name].clean == pytest.approx(probs(vlm, items), rel=1e-4)
        for kind, chosen in (("own", range(4)), ("another", control)):
            givers = [replace(sides[giver][g], answer=items[i].answer) for i, g in enumerate(chosen)]
            there, given = states(vlm, givers), masks(vlm, givers)["last"]
            for slot in range(vlm.n_layers + 1):
                expected = probs(vlm, items, slot, masks(vlm, items)["last"], there[slot][given])
                assert found[name].prob[kind][:, slot] == pytest.approx(expected, rel=1e-4)
        # What leaves the last layer is the answer of the run it comes from; what enters the first, a word.
        own = found[name].prob["own"]
        assert own[:, -1] == pytest.approx(probs(vlm, sides[giver]), rel=1e-4)
        assert own[:, 0] == pytest.approx(found[name].clean, rel=1e-4)


@pytest.mark.usefixtures("all_solved")
def test_without_another_answer_there_is_no_control(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="all items answered have the answer 'red'"):
        caption_patching.caption_sweep(vlm, [CAPTIONED[0], CAPTIONED[3]])


@pytest.mark.slow
def test_later_states_put_back_are_those_of_plain_hooks(vlm: VLM) -> None:
    """Without any item answered: back-patching keeps them all."""
    swept = backpatch_sweep(vlm, ITEMS, targets=(0, 2), batch_size=3)
    n = vlm.n_layers
    assert swept.windows == [(j, 0) for j in range(n + 1)] + [(j, 2) for j in range(2, n + 1)]
    assert len(swept.clean) == len(ITEMS)
    assert not swept.solved.any()
    there = states(vlm, ITEMS)
    for name, place in (("image tokens", "image"), ("question tokens", "question")):
        mask = masks(vlm, ITEMS)[place]
        for column, (source, target) in enumerate(swept.windows):
            expected = probs(vlm, ITEMS, target, mask, there[source][mask])
            assert swept.prob[name][:, column] == pytest.approx(expected, rel=1e-4)
            if source == target:
                assert swept.gain(name)[:, column] == pytest.approx(0, abs=1e-7)


@pytest.mark.slow
def test_sources_may_be_more_than_one_layer_apart(vlm: VLM) -> None:
    n = vlm.n_layers
    fewer, every = (backpatch_sweep(vlm, ITEMS, targets=(1,), stride=stride) for stride in (2, 1))
    assert fewer.windows == [(j, 1) for j in range(1, n, 2)] + [(n, 1)]
    at = [every.windows.index(window) for window in fewer.windows]
    for name, prob in fewer.prob.items():
        assert prob == pytest.approx(every.prob[name][:, at], rel=1e-4)


def test_layers_that_are_not_there_are_refused(vlm: VLM) -> None:
    with pytest.raises(IndexError, match=r"target is 4, expected 0\.\.3"):
        backpatch_sweep(vlm, ITEMS, targets=(4,))
