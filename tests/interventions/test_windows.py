from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.driver import recording
from vlalign_utils.driver.capabilities import Finding
from vlalign_utils.inference.scoring import answer_scores, batches
from vlalign_utils.interventions import windows
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe

ALL = {**windows.FREEZES, **windows.ROUTES}


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def test_positions_are_disjoint_and_where_they_should_be(vlm: VLM) -> None:
    (batch,) = batches(vlm, ITEMS)
    run = vlm.record(**batch.inputs)
    at = windows.positions(vlm, run, batch)
    assert not (at.image & at.question).any()
    assert not (at.last & (at.image | at.question)).any()
    for row, item in enumerate(batch.rows):
        assert at.image[row].sum() == 4
        # The question's words and one of the template's two; the other is the prompt's last token.
        assert at.question[row].sum() == len(ITEMS[item].prompt.split()) + 1
        assert at.last[row].sum() == 1 + len(ITEMS[item].answer.split()) + 1
        assert at.some_image[row].sum() == at.some_text[row].sum() == min(4, int(at.question[row].sum()))
    assert not (at.some_image & ~at.image).any()
    assert not (at.some_text & ~at.question).any()


@torch.no_grad()
@pytest.mark.usefixtures("all_solved")
def test_sweep_equals_full_forwards(vlm: VLM) -> None:
    swept = windows.sweep(vlm, ITEMS, ALL, width=2, seed=5, batch_size=3)
    for batch in batches(vlm, ITEMS, 3):
        run = vlm.record(**batch.inputs)
        at = windows.positions(vlm, run, batch, 5)
        assert swept.clean[batch.rows] == pytest.approx(answer_scores(run.logits, batch.answers).prob)
        for name, intervention in ALL.items():
            for column, (first, last) in enumerate(swept.windows):
                whole = recording.forward(vlm.anatomy, batch.inputs, [intervention(at, first, last)])
                scores = answer_scores(whole.logits, batch.answers)
                assert swept.prob[name][batch.rows, column] == pytest.approx(scores.prob, rel=1e-4)
                assert (swept.correct[name][batch.rows, column] == scores.correct).all()


@torch.no_grad()
@pytest.mark.usefixtures("all_solved")
def test_last_to_last_is_a_mask_without_those_pairs(vlm: VLM) -> None:
    """Over all layers at once, it is what transformers makes of such a mask by itself."""
    name = "last to last"
    swept = windows.sweep(vlm, ITEMS, {name: windows.ROUTES[name]}, width=vlm.n_layers)
    for row, item in enumerate(ITEMS):
        inputs = vlm.prepare([item.prompt], [item.image], [item.answer])
        tokens, answer = inputs["input_ids"].shape[1], len(item.answer.split()) + 1
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        seen[-answer - 1 :, -answer - 1 :] = False
        inputs["attention_mask"] = torch.zeros(1, 1, tokens, tokens).masked_fill(~seen, -1e30)
        chances = vlm.model(**inputs).logits[0].softmax(-1)
        ids = inputs["input_ids"][0]
        expected = np.prod([chances[-k - 1, ids[-k]].item() for k in range(1, answer + 1)])
        assert swept.prob[name][row, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("all_solved")
def test_layers_below_a_window_run_once_and_tokens_before_the_edit_too(vlm: VLM) -> None:
    vlm.capabilities()
    tokens: list[list[int]] = [[] for _ in vlm.layers]

    def note(k: int) -> Any:
        return lambda module, args, output: tokens[k].append(output.shape[0] * output.shape[1])

    handles = [layer.mlp.register_forward_hook(note(k)) for k, layer in enumerate(vlm.layers)]
    windows.sweep(vlm, ITEMS, {"image to last": windows.ROUTES["image to last"]}, width=2)
    for handle in handles:
        handle.remove()
    (batch,) = batches(vlm, ITEMS)
    whole = batch.inputs["input_ids"].numel()
    later = int((batch.answers >= 0).sum(-1).max()) + 1
    # One record, then one batch of the windows that start at or below the layer, from the prompt's end on.
    rows = [1, 2, 3, 3]
    assert tokens == [[whole, n * len(ITEMS) * later] for n in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("all_solved")
def test_weights_put_back_are_those_of_the_other_stage(vlm: VLM) -> None:
    before = VLM(build("llava")[0].model, tiny_processor())
    with torch.no_grad():
        for parameter in before.layers[2].parameters():
            parameter.mul_(1.5)
    swept = windows.sweep(vlm, ITEMS, windows.reverts(before), width=1)
    drop = swept.drop("weights reverted")
    assert drop[:, [0, 1, 3]] == pytest.approx(0, abs=1e-6)
    assert (drop[:, 2] != 0).all()
    own = vlm.layers[2].state_dict()
    vlm.layers[2].load_state_dict(before.layers[2].state_dict())
    (batch,) = batches(vlm, ITEMS)
    with torch.no_grad():
        scores = answer_scores(vlm.model(**batch.inputs).logits, batch.answers)
    vlm.layers[2].load_state_dict({name: value / 1.5 for name, value in own.items()})
    assert swept.prob["weights reverted"][batch.rows, 2] == pytest.approx(scores.prob, rel=1e-4)


@pytest.mark.usefixtures("all_solved")
def test_patches_from_another_picture(vlm: VLM) -> None:
    """All that the picture changed, put in at once, is the other picture's answer; so is the last slot."""
    donors = [Image.new("RGB", (16, 16), "black")] * len(ITEMS)
    swept = windows.patch_sweep(vlm, ITEMS, donors, batch_size=2)
    assert swept.windows == [(k, k) for k in range(vlm.n_layers + 1)]
    for batch in batches(vlm, [replace(item, image=donors[0]) for item in ITEMS], 2):
        with torch.no_grad():
            scores = answer_scores(vlm.model(**batch.inputs).logits, batch.answers)
        assert swept.prob["image"][batch.rows, 0] == pytest.approx(scores.prob, rel=1e-4)
        assert swept.prob["last"][batch.rows, -1] == pytest.approx(scores.prob, rel=1e-4)
    assert swept.drop("last")[:, 0] == pytest.approx(0, abs=1e-6)


def test_patches_that_do_not_fit_are_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="4 items but 1 donors"):
        windows.patch_sweep(vlm, ITEMS, [Image.new("RGB", (16, 16))])
    with pytest.raises(ValueError, match="'imge', expected some of image"):
        windows.patch_sweep(vlm, ITEMS, [Image.new("RGB", (16, 16))] * 4, ("imge",))


@pytest.mark.usefixtures("all_solved")
def test_what_the_model_does_not_allow_is_refused(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = vlm.capabilities()
    leaky = replace(allowed, knockout=Finding(False, "0.5 of the pixels' effect is left"))
    monkeypatch.setattr(vlm, "_capabilities", leaky)
    windows.sweep(vlm, ITEMS, windows.FREEZES, width=2)
    with pytest.raises(ValueError, match=r"does not allow knockout .*0\.5 of the pixels' effect is left"):
        windows.sweep(vlm, ITEMS, ALL, width=2)


@pytest.mark.usefixtures("all_solved")
@pytest.mark.parametrize("name", list(ALL))
def test_every_intervention_reaches_the_answer(vlm: VLM, name: str) -> None:
    swept = windows.sweep(vlm, ITEMS, {name: ALL[name]}, width=2)
    assert (swept.drop(name)[:, 0] != 0).all()


@pytest.mark.usefixtures("all_solved")
def test_freezing_image_tokens_in_the_last_layer_changes_nothing(vlm: VLM) -> None:
    swept = windows.sweep(vlm, ITEMS, {"all image tokens": windows.FREEZES["all image tokens"]}, width=1)
    # They are frozen as they enter it: no position that is read out sees the difference.
    assert swept.drop("all image tokens")[:, -1] == pytest.approx(0, abs=1e-7)


def test_drop_and_score_are_what_they_say() -> None:
    swept = windows.Sweep(
        windows=[(0, 0)],
        chance=np.array([0.5, 0.25]),
        clean=np.array([0.9, 0.8]),
        solved=np.array([True, True]),
        prob={"cut": np.array([[0.4], [0.8]])},
        correct={"cut": np.array([[False], [True]])},
    )
    assert swept.drop("cut")[:, 0] == pytest.approx([0.5, 0.0])
    assert swept.gain("cut")[:, 0] == pytest.approx([-0.5, 0.0])
    assert swept.score("cut")[:, 0] == pytest.approx([-1.0, 1.0])


def test_windows_slide_by_the_stride() -> None:
    assert windows.windows(4, 2) == [(0, 1), (1, 2), (2, 3)]
    assert windows.windows(4, 4) == [(0, 3)]
    assert windows.windows(30, 6, 3) == [(first, first + 5) for first in range(0, 25, 3)]
    assert windows.windows(8, 3, 2) == [(0, 2), (2, 4), (4, 6), (5, 7)]  # the last layer is in one, too
    assert windows.windows(5, 5, 2) == [(0, 4)]


@pytest.mark.parametrize("width", [0, 5])
def test_impossible_windows_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"window of {width} layers"):
        windows.windows(4, width)


@pytest.mark.parametrize("stride", [0, 3])
def test_windows_that_leave_out_a_layer_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"that are {stride} apart"):
        windows.windows(8, 2, stride)


def test_a_model_that_solves_nothing_is_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="none of the 4 items"):
        windows.sweep(vlm, ITEMS, ALL, width=2)


@pytest.mark.usefixtures("all_solved")
def test_items_without_an_image_are_refused(vlm: VLM) -> None:
    blind = [Item(None, i.prompt, i.answer, i.choices, i.group, i.caption) for i in ITEMS]
    with pytest.raises(ValueError, match="no image tokens"):
        windows.sweep(vlm, blind, ALL, width=2)


@pytest.fixture(scope="module")
def crossing() -> VLM:
    """A random model whose layers 2, 5 and 8 read the picture by cross-attention."""
    recipe = read_recipe(ROOT / "zoo" / "recipes" / "mllama.yml")
    tokenizer = build_tokenizer_for(recipe)
    return VLM(build_model(recipe, tokenizer, 0).eval(), build_processor(recipe, tokenizer))


@pytest.mark.slow
@pytest.mark.usefixtures("all_solved")
def test_where_images_take_no_positions_cross_attention_is_cut(crossing: VLM) -> None:
    interventions = windows.interventions(crossing)
    assert list(interventions) == [windows.CROSS]
    swept = windows.sweep(crossing, load_suite("attributes", 4), interventions, width=2)
    moved = np.abs(swept.drop(windows.CROSS)).max(axis=0) > 1e-9
    assert moved.tolist() == [any(k in (2, 5, 8) for k in window) for window in swept.windows]


def test_where_images_take_positions_tokens_are_frozen_and_routes_cut(vlm: VLM) -> None:
    assert windows.interventions(vlm) == ALL


def test_items_that_are_not_scored_by_their_answer_are_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="scored by choice: sweeps follow the probability of one answer"):
        windows.sweep(vlm, load_suite("compositional", 2), ALL, width=2)
