import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from blank_things import blank_things

from vlalign_utils import load_vlm
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.inference import scoring
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.model_files import n_layers
from vlalign_utils.pipeline.parameters import effective, read_notebook
from vlalign_utils.pipeline.tune import TUNING
from vlalign_utils.tuning import protocol as sizes
from vlalign_utils.tuning import study, timing
from vlalign_utils.tuning.outcomes import Trial
from vlalign_utils.tuning.protocol import Protocol
from vlalign_utils.tuning.study_records import Records, committed

pytestmark = pytest.mark.xdist_group("study")  # made once, in one process
SMALL = Protocol(
    band=(2, 5),
    suites=("attributes", "digits"),
    steps=2,
    batch_size=4,
    seeds=4,
    rates=(1e-4, 1e-3),
    trial_steps=1,
    items=2,
    rank=8,
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
        patch.setattr(sizes, "TRIAL_ITEMS", 2)
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
def test_what_claims_compare_has_every_seed_and_the_others_three(found):
    judged = {"full", "band", "early", "late", "connector", "band, LoRA", "early, LoRA", "late, LoRA"}
    assert list(found[0].found)[:5] == ["full", "band", "early", "late", "connector"]
    seeds = {name: [r["seed"] for r in runs] for name, runs in found[0].found.items()}
    others = {"band, connector", "complement", "uniform", "everywhere, LoRA"}
    assert seeds == {name: [0, 1, 2, 3] for name in judged} | {name: [0, 1, 2] for name in others}


@pytest.mark.slow
def test_equal_sizes_are_equal(found, chain):
    parameters = {name: runs[0]["parameters"] for name, runs in found[0].found.items()}
    layers = {name: len(runs[0]["layers"]) for name, runs in found[0].found.items()}
    assert layers["band"] == layers["early"] == layers["late"] == layers["uniform"] == 3
    assert layers["complement"] == chain[0].n_layers - 3
    assert parameters["band, LoRA"] < parameters["band"] < parameters["full"]


def test_lora_everywhere_has_the_rank_that_gives_it_the_parameters_of_the_band():
    protocol = replace(SMALL, band=(7, 12), rank=12)
    ranks = {s.name: s.rank * len(s.layers) for s in study.compared(30, protocol) if s.rank}
    assert ranks == {"band, LoRA": 60, "early, LoRA": 60, "late, LoRA": 60, "everywhere, LoRA": 60}


@pytest.mark.slow
def test_rates_are_chosen_by_the_better_score(found):
    tried = [r for r in found[1].used.values() if r["what"] == "rate" and r["strategy"] == "full"]
    assert sorted(r["lr"] for r in tried) == [1e-4, 1e-3]
    best = min(tried, key=lambda r: (-r["score"], r["loss"]))
    assert {r["lr"] for r in found[0].found["full"]} == {best["lr"]}
    assert {lr: tuple(t) for lr, t in found[0].tried["full"].items()} == {
        r["lr"]: (r["loss"], r["score"]) for r in tried
    }


@pytest.mark.parametrize(
    ("best", "beyond"),
    [(1e-3, []), (3e-3, [9e-3]), (1e-4, [3.3e-5]), (1.0, [9e-3, 0.027, 0.081])],
)
def test_rates_beyond_an_end_are_tried_while_the_best_lies_there(best, beyond, monkeypatch):
    monkeypatch.setattr(study, "BEYOND", 3)
    found = study.trials(lambda rate: Trial(0.0, -abs(np.log(rate / best))), [3e-3, 1e-3, 1e-4])
    assert list(found) == pytest.approx([3e-3, 1e-3, 1e-4, *beyond])


def test_a_single_rate_is_taken_untried():
    assert list(study.trials(lambda rate: 1 / 0, [1e-3])) == [1e-3]


def test_the_suites_are_those_of_the_protocol_s_world(monkeypatch):
    blank_things(monkeypatch)
    protocol = replace(SMALL, world="things", suites=("existence", "digits"))
    assert {item.group for item in sizes._questions(protocol, 0, 8)} == {"exists", "digit"}


@pytest.mark.slow
def test_a_short_run_is_asked_other_questions_of_every_suite(chain):
    protocol = replace(SMALL, trial_steps=3)
    sizes.trial_data.cache_clear()
    batches, asked = sizes.trial_data(chain[0], protocol)
    assert sum(len(batch.rows) for batch in batches) == 3 * SMALL.batch_size
    assert len(asked) == sizes.TRIAL_ITEMS * len(SMALL.suites)
    every = sizes._questions(protocol, sizes.TRIAL_SEED, 12 + len(asked))
    assert [(item.prompt, item.answer) for item in every[12:]] == [(i.prompt, i.answer) for i in asked]
    many = sizes._questions(protocol, sizes.TRIAL_SEED, 200)
    groups = {item.group for item in load_suite("digits", 100, 5, "train")}
    assert {item.group in groups for item in many} == {True, False}


@pytest.mark.slow
def test_no_question_is_seen_twice(chain):
    data = sizes.training_batches(chain[0], SMALL, 0, SMALL.steps)
    assert [len(batch.rows) for batch in data] == [SMALL.batch_size] * SMALL.steps
    rows = [row for batch in data for row in batch.rows]
    assert sorted(rows) == list(range(SMALL.steps * SMALL.batch_size))


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
    steps = sizes.EPOCHS * SMALL.timed_batches
    assert (taken["steps"], taken["epochs"], taken["rounds"]) == (6, 3, 2)
    assert taken["machine"] == timing.machine("cpu")
    assert set(taken["taken"]) == set(found[0].found)
    below = {"full", "connector", "band, connector"}  # they train what lies below layer 0
    assert set(taken["from_prefixes"]) == set(found[0].found) - below
    every = [*taken["taken"].values(), *taken["from_prefixes"].values()]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in every)
    turns = []
    monkeypatch.setattr(
        timing,
        "tune",
        lambda vlm, s, data, b, to: turns.append((s.name, b.steps, to is not None)) or nullcontext(),
    )
    chosen = study.compared(chain[0].n_layers, SMALL)
    timing.timed(chain[0], chosen, SMALL)
    one = [[(s.name, steps, to) for to in (False, True) if not to or s.start is not None] for s in chosen]
    rounds = [*one, *one[1:], one[0]]  # the second begins with another strategy
    assert turns == [("full", SMALL.timed_batches, False), *(turn for turns in rounds for turn in turns)]


@pytest.mark.slow
def test_what_is_on_record_is_not_trained_again(found, chain, monkeypatch):
    monkeypatch.setattr(timing, "tune", None)
    monkeypatch.setattr(study, "tune", None)
    again = study.study(*chain, SMALL, found[1])
    assert (again.found, again.timing, again.tuned) == (found[0].found, found[0].timing, found[0].tuned)


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
    assert {name: len(items) for name, items in evaluation.items()} == {
        "attributes": 2,
        "digits": 2,
        "text": 4,
    }
    for stage, record in zip(chain, (found[0].aligned, found[0].tuned), strict=True):
        expected = scoring.evaluate(stage, evaluation["digits"]).correct
        assert record["correct"]["digits"] == expected.tolist()


CHAINS = [e.name for e in registry.load().architectures.values() if TUNING in e.notebooks]


@pytest.mark.parametrize("arch", CHAINS)
def test_committed_records_are_those_of_the_registry(arch):
    """All that the registry's parameters ask for, and nothing else, is on record."""
    entry = registry.load().architecture(arch)
    own = entry.parameters.get(TUNING, {})
    filled = {"arch": arch, "quick": False}
    params = effective(read_notebook(TUNING, ROOT), TUNING, filled, own)
    protocol = sizes.protocol_of(params, entry.world)
    records = [json.loads(line) for line in committed(arch).read_text().splitlines()]
    runs = [r for r in records if r["what"] == "run"]
    assert {(r["steps"], r["batch_size"]) for r in runs} == {(protocol.steps, protocol.batch_size)}
    (timed,) = [r for r in records if r["what"] == "timing"]
    assert all(len(taken) == protocol.rounds for taken in timed["taken"].values())
    chosen = study.compared(n_layers(entry, ROOT, False), protocol)
    assert [s.name for s in chosen] == list(timed["taken"])
    seeds = {s.name: [r["seed"] for r in runs if r["strategy"] == s.name] for s in chosen}
    assert seeds == {s.name: list(study.seeds_of(s, protocol)) for s in chosen}
    assert len(runs) == sum(map(len, seeds.values()))


@pytest.mark.slow
def test_a_committed_run_is_the_same_when_trained_again(monkeypatch):
    """The cheapest one. Small differences between processors may tip an answer or two."""
    monkeypatch.setattr(sizes, "TRIAL_ITEMS", study.TRIAL_ITEMS)  # as many as there
    records = [json.loads(line) for line in committed("llava").read_text().splitlines()]
    old = next(r for r in records if r["what"] == "rate" and r["strategy"] == "late")
    filled = {"arch": "llava", "quick": False}
    own = registry.load().architecture("llava").parameters.get(TUNING, {})
    protocol = sizes.protocol_of(effective(read_notebook(TUNING, ROOT), TUNING, filled, own))
    vlm = load_vlm("zoo/llava", stage="aligned")
    strategy = study.strategies(vlm.n_layers, protocol.band)["late"]
    new = study.trial(vlm, strategy, protocol, old["lr"])
    assert new.loss == pytest.approx(old["loss"], rel=0.05, abs=0.02)
    assert new.score == pytest.approx(old["score"], abs=0.05)
