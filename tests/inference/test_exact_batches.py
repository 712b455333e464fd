"""GIT counts positions through the padding: a batch must give what its items give alone."""

import cross
import pytest
import torch
import transformers
from tiny_models import ITEMS, randomise, tiny_processor

from vlalign_utils import VLM, collect, evaluate
from vlalign_utils.inference.batching import exact_batches
from vlalign_utils.inference.scoring import batches, descriptions
from vlalign_utils.interventions.sweep import answered, replayed


@pytest.fixture(scope="module")
def git() -> VLM:
    config, model_class, _ = cross.git()
    parts = tiny_processor()
    processor = transformers.GitProcessor(parts.image_processor, parts.tokenizer)
    return VLM(randomise(model_class(config)), processor)


@pytest.mark.slow
@torch.no_grad()
def test_scores_are_those_of_the_plain_model_on_each_item(git: VLM) -> None:
    found = evaluate(git, ITEMS)
    for prob, item in zip(found.prob, ITEMS, strict=True):
        asked = git.prepare([item.prompt], [item.image])
        ids = git.prepare([item.prompt], [item.image], [item.answer])["input_ids"]
        n = ids.shape[1] - asked["input_ids"].shape[1]
        assert n > 1
        logits = git.model(input_ids=ids, pixel_values=asked["pixel_values"], use_cache=False).logits
        each = logits[0, -n - 1 : -1].log_softmax(-1).gather(-1, ids[0, -n:, None])
        assert prob == pytest.approx(each.sum().exp().item(), rel=1e-5)


@pytest.mark.slow
def test_descriptions_and_states_are_those_of_each_item_alone(git: VLM) -> None:
    assert descriptions(git, ITEMS) == [descriptions(git, [item])[0] for item in ITEMS]
    prompts, images = [item.prompt for item in ITEMS], [item.image for item in ITEMS]
    together = collect(git, prompts, images, ["image", "text", "last"])
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        (image_states,) = torch.stack(git.record(**git.prepare([prompt], [image])).resid).unbind(1)
        assert torch.allclose(together["last"][:, i], image_states[:, -1], atol=1e-6)
        assert torch.allclose(together["image"][:, i], image_states[:, :5].mean(1), atol=1e-5)
        assert torch.allclose(together["text"][:, i], image_states[:, 5:].mean(1), atol=1e-5)


@pytest.mark.usefixtures("all_solved")
def test_sweeps_start_from_the_scores_of_each_item_alone(git: VLM) -> None:
    assert answered(git, ITEMS) == [0, 1, 2, 3]
    swept = replayed(git, ITEMS, ["none"], [(0, 0)], lambda run, batch: {"none": [[]]})
    assert swept.clean == pytest.approx(evaluate(git, ITEMS).prob, rel=1e-5)


def test_padding_would_move_the_items(git: VLM) -> None:
    """The batch that training takes: the reason for the above."""
    (batch,) = batches(git, ITEMS)
    padded = git.record(**batch.inputs).logits[:, -1]
    alone = [git.record(**git.prepare([i.prompt], [i.image], [i.answer])).logits[0, -1] for i in ITEMS]
    moved = [not torch.allclose(padded[batch.rows.index(i)], row, atol=1e-4) for i, row in enumerate(alone)]
    assert any(moved)


def test_a_trial_is_made_once_and_only_for_items_together(git: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, trials = VLM(git.model, git.processor), []
    known = git.capabilities()
    monkeypatch.setattr(
        "vlalign_utils.driver.capability_trials.probe", lambda vlm, inputs: trials.append(inputs) or known
    )
    assert exact_batches(fresh, [[0], [2]]) == [[0], [2]]
    assert not trials
    assert exact_batches(fresh, [[0, 1], [2]]) == [[0], [1], [2]]
    assert exact_batches(fresh, [[0, 1]]) == [[0], [1]]
    assert len(trials) == 1
    without = VLM(git.model)  # its inputs are made, and padded, elsewhere
    assert exact_batches(without, [[0, 1]]) == [[0, 1]]
    assert len(trials) == 1
