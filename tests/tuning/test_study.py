import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from blank_things import blank_things

from vlalign_utils import load_vlm
from vlalign_utils.cli import TUNING
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.inference import scoring
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.parameters import effective, read_notebook
from vlalign_utils.tuning import protocol as sizes
from vlalign_utils.tuning import study, timing
from vlalign_utils.tuning.study import Protocol
from vlalign_utils.tuning.study_records import Records, committed

pytestmark = pytest.mark.xdist_group("study")  # made once, in one process
SMALL = Protocol(
    band=(2, 5),
    steps=2,
    epochs=2,
    batch_size=4,
    seeds=2,
    rates=(1e-4, 1e-3),
    trial_steps=1,
    items=2,
    rank=2,
    singles=True,
    rounds=2,
)


@pytest.fixture(autouse=True)
def _fresh():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def _few_trials():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "BEYOND", 0)
        patch.setattr(study, "TRIAL_BATCHES", 2)
        yield


@pytest.fixture(scope="module")
def chain():
    return load_vlm("zoo/mllama", stage="aligned"), load_vlm("zoo/mllama", stage="tuned")


@pytest.fixture(scope="module")
def found(chain, tmp_path_factory):
    AcceleratorState._reset_state(reset_partial_state=True)
    kept = Records(ROOT / "none", tmp_path_factory.mktemp("study") / "journal.jsonl")
    before = {name: p.clone() for name, p in chain[0].model.named_parameters()}
    result = study.study(*chain, SMALL, kept)
    assert all(torch.equal(before[name], p) for name, p in chain[0].model.named_parameters())
    return result, kept


@pytest.mark.slow
def test_every_strategy_is_there_for_every_seed(found):
    names = ["full", "band", "early", "late", "complement", "uniform", "connector", "random", "top"]
    assert set(found[0].found) == {*names, "band, connector", "band, LoRA", "early, LoRA", "late, LoRA"}
    assert all([r["seed"] for r in runs] == [0, 1] for runs in found[0].found.values())


@pytest.mark.slow
def test_equal_sizes_are_equal(found, chain):
    parameters = {name: runs[0]["parameters"] for name, runs in found[0].found.items()}
    layers = {name: len(runs[0]["layers"]) for name, runs in found[0].found.items()}
    assert layers["band"] == layers["early"] == layers["late"] == layers["uniform"] == layers["random"] == 3
    assert layers["top"] == 3
    assert layers["complement"] == chain[0].n_layers - 3
    assert parameters["band, LoRA"] < parameters["band"] < parameters["full"]


def test_random_layers_are_drawn_again_for_every_seed():
    drawn = [
        next(s.layers for s in study.compared(16, SMALL, [0.1] * 16, seed) if s.name == "random")
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.slow
def test_rates_are_chosen_by_the_lower_loss(found):
    tried = [r for r in found[1].used.values() if r["what"] == "rate" and r["strategy"] == "full"]
    assert sorted(r["lr"] for r in tried) == [1e-4, 1e-3]
    best = min(tried, key=lambda r: r["loss"])
    assert {r["lr"] for r in found[0].found["full"]} == {best["lr"]}
    assert found[0].tried["full"] == {r["lr"]: r["loss"] for r in tried}


@pytest.mark.parametrize(
    ("best", "beyond"),
    [(1e-3, []), (3e-3, [9e-3]), (1e-4, [3.3e-5]), (1.0, [9e-3, 0.027, 0.081])],
)
def test_rates_beyond_an_end_are_tried_while_the_best_lies_there(best, beyond, monkeypatch):
    monkeypatch.setattr(study, "BEYOND", 3)
    found = study.losses(lambda rate: abs(np.log(rate / best)), [3e-3, 1e-3, 1e-4])
    assert list(found) == pytest.approx([3e-3, 1e-3, 1e-4, *beyond])


def test_a_single_rate_is_taken_untried():
    assert list(study.losses(lambda rate: 1 / 0, [1e-3])) == [1e-3]


def test_the_suites_are_those_of_the_protocol_s_world(monkeypatch):
    blank_things(monkeypatch)
    assert sizes.vision_suites("things")[:2] == ["naming", "unseen"]
    protocol = replace(SMALL, world="things", batch_size=8)
    asked = sizes._questions(protocol, 0, 1)
    assert len(asked) == 8
    assert {"digit", "exists", "number", "unseen things"} <= {item.group for item in asked}


@pytest.mark.slow
def test_a_short_run_is_asked_other_questions_of_every_suite(chain):
    protocol = replace(SMALL, trial_steps=30, batch_size=32)
    every = sizes._questions(protocol, sizes.TRIAL_SEED, protocol.trial_steps + sizes.TRIAL_BATCHES)
    trained, asked = every[: 30 * 32], every[30 * 32 :]
    suites = {
        name: {item.group for item in load_suite(name, 100, 5, "train")} for name in sizes.vision_suites()
    }
    assert all({item.group for item in asked} & groups for groups in suites.values())
    parts = sizes.trial_batches(chain[0], SMALL)
    held = [sum(len(batch.rows) for batch in part) for part in parts]
    assert held == [SMALL.trial_steps * SMALL.batch_size, sizes.TRIAL_BATCHES * SMALL.batch_size]
    assert len(trained) + len(asked) == 32 * (30 + sizes.TRIAL_BATCHES)


@pytest.mark.slow
def test_later_epochs_are_what_two_take_more_than_one(chain, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    asked = []
    monkeypatch.setattr(timing, "tune", lambda *given: asked.append(given[1:]) or nullcontext())
    found = timing.side_by_side(chain[0], SMALL, 2)
    assert found == {
        "full": 1,
        "band, ordinary loop": 1,
        "band, first epoch, which records": 1,
        "band, each later epoch": 0,
    }
    batches = SMALL.timed_batches
    assert [(s.name, b.steps, folder is not None) for s, _, b, folder in asked[:4]] == [
        ("band", batches, True),
        ("full", batches, False),
        ("band", batches, False),
        ("band", 2 * batches, True),
    ]


@pytest.mark.slow
def test_every_strategy_is_timed_in_every_round(found, chain, monkeypatch):
    taken = found[0].timing
    assert (taken["steps"], taken["epochs"], taken["rounds"]) == (2, 2, 2)
    assert taken["machine"] == timing.machine("cpu")
    assert set(taken["taken"]) == set(found[0].found)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in taken["taken"].values())
    turns = []
    monkeypatch.setattr(timing, "tuned_alone", lambda vlm, s, *rest: turns.append(s.name) or nullcontext())
    chosen = study.compared(chain[0].n_layers, SMALL, [0.1] * chain[0].n_layers, 0)
    timing.timed(chain[0], chosen, SMALL)
    assert turns == [s.name for s in chosen] * 2


@pytest.mark.slow
def test_what_is_on_record_is_not_trained_again(found, chain, monkeypatch):
    monkeypatch.setattr(timing, "tune", None)
    again = study.study(*chain, SMALL, found[1])
    assert again.found == found[0].found
    assert again.importance == found[0].importance
    assert again.timing == found[0].timing


@pytest.mark.slow
def test_seeds_draw_other_questions_in_another_order(chain):
    one, same, other = (sizes.training_batches(chain[0], SMALL, seed, 2) for seed in (0, 0, 1))
    assert torch.equal(one[0].inputs["input_ids"], same[0].inputs["input_ids"])
    assert one[0].inputs["input_ids"].shape != other[0].inputs["input_ids"].shape or not torch.equal(
        one[0].inputs["input_ids"], other[0].inputs["input_ids"]
    )


@pytest.mark.slow
def test_scores_are_those_of_the_suites(found, chain):
    evaluation = found[0].evaluation
    assert list(evaluation) == [*sizes.vision_suites(), "text"]
    expected = scoring.evaluate(chain[0], evaluation["digits"]).correct
    assert found[0].aligned["correct"]["digits"] == expected.tolist()


@pytest.mark.slow
def test_importance_is_the_loss_when_a_layer_is_put_back(found, chain):
    aligned, tuned = chain
    items = [
        i for name in sizes.vision_suites() for i in load_suite(name, SMALL.items, sizes.TRIAL_SEED, "train")
    ]
    whole = scoring.evaluate(tuned, items).prob
    own = {name: value.clone() for name, value in tuned.layers[1].state_dict().items()}
    tuned.layers[1].load_state_dict(aligned.layers[1].state_dict())
    lost = (whole - scoring.evaluate(tuned, items).prob).mean()
    tuned.layers[1].load_state_dict(own)
    assert found[0].importance[1] == pytest.approx(lost, abs=1e-4)


def test_epochs_share_the_steps():
    assert SMALL.batches == 1
    assert replace(SMALL, steps=7, epochs=3).batches == 3


CHAINS = [e.name for e in registry.load().architectures.values() if TUNING in e.notebooks]


@pytest.mark.parametrize("arch", CHAINS)
def test_committed_records_are_those_of_the_registry(arch):
    """All that the registry's parameters ask for, and nothing else, is on record."""
    entry = registry.load().architecture(arch)
    own = entry.parameters.get(TUNING, {})
    filled = {"arch": arch, "quick": False}
    params = effective(read_notebook(TUNING, ROOT), TUNING, filled, own)
    protocol = sizes.protocol_of(params)
    records = [json.loads(line) for line in committed(arch).read_text().splitlines()]
    runs = [r for r in records if r["what"] == "run"]
    assert {(r["steps"], r["batch_size"]) for r in runs} == {(protocol.steps, protocol.batch_size)}
    several = [r for r in runs if not r["strategy"].startswith("layer ")]
    (timed,) = [r for r in records if r["what"] == "timing"]
    assert set(timed["taken"]) == {r["strategy"] for r in several}
    assert all(len(taken) == protocol.rounds for taken in timed["taken"].values())
    assert len(several) == len(timed["taken"]) * protocol.seeds
    assert {r["seed"] for r in several} == set(range(protocol.seeds))


@pytest.mark.slow
def test_a_committed_run_is_the_same_when_trained_again():
    """The cheapest one. Small differences between processors may tip an answer or two."""
    records = [json.loads(line) for line in committed("llava").read_text().splitlines()]
    old = next(r for r in records if r["what"] == "run" and r["strategy"] == "late" and r["seed"] == 0)
    filled = {"arch": "llava", "quick": False}
    own = registry.load().architecture("llava").parameters[TUNING]
    protocol = sizes.protocol_of(effective(read_notebook(TUNING, ROOT), TUNING, filled, own))
    evaluation = {name: load_suite(name, protocol.items) for name in sizes.vision_suites()}
    evaluation["text"] = load_suite("text", 2 * protocol.items)
    vlm = load_vlm("zoo/llava", stage="aligned")
    strategy = study.strategies(vlm.n_layers, protocol.band)["late"]
    new = study.trained_once(vlm, strategy, protocol, 0, old["lr"], evaluation)
    assert np.array(new["loss"]) == pytest.approx(np.array(old["loss"]), rel=0.05, abs=0.02)
    for suite, correct in old["correct"].items():
        assert np.mean(new["correct"][suite]) == pytest.approx(np.mean(correct), abs=0.1), suite
    assert (new["parameters"], new["memory"]) == (old["parameters"], pytest.approx(old["memory"], rel=0.01))
