from dataclasses import replace

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from vlalign_utils import load_vlm
from vlalign_utils.paths import ROOT
from vlalign_utils.tuning import adapter_depth, study
from vlalign_utils.tuning import protocol as sizes
from vlalign_utils.tuning.adapter_depth import adapter_study, placements, seeds_of, windows
from vlalign_utils.tuning.lora import parameter_count
from vlalign_utils.tuning.protocol import Protocol
from vlalign_utils.tuning.study_records import Records

pytestmark = pytest.mark.xdist_group("adapters")
SMALL = Protocol(
    band=(2, 5),
    suites=("attributes", "digits"),
    steps=1,
    batch_size=4,
    seeds=4,
    rates=(1e-3,),
    trial_steps=1,
    items=2,
    rank=8,
    rounds=1,
)


@pytest.fixture(scope="module")
def chain():
    return load_vlm("zoo/llava", stage="aligned"), load_vlm("zoo/llava", stage="tuned")


@pytest.mark.parametrize(
    ("n_layers", "band", "starts"),
    [(8, (2, 5), [0, 1, 2, 3, 5]), (30, (7, 12), [0, 3, 7, 16, 25]), (4, (1, 2), [0, 1, 2, 3])],
)
def test_windows_lie_from_the_first_layers_to_the_last(n_layers, band, starts):
    found = windows(n_layers, replace(SMALL, band=band))
    assert [s.layers[0] for s in found.values()] == starts
    width = band[1] - band[0]
    assert all(s.layers == tuple(range(s.layers[0], s.layers[0] + width)) for s in found.values())
    assert starts[-1] + width == n_layers
    assert {"early, LoRA", "band, LoRA", "late, LoRA"} <= set(found)
    assert all(s.rank == SMALL.rank for s in found.values())


@pytest.mark.parametrize("band", [(0, 3), (5, 8)])
def test_a_band_at_an_end_of_the_model_is_refused(band):
    with pytest.raises(ValueError, match="must lie between the first and the last layers"):
        windows(8, replace(SMALL, band=band))


def test_what_is_the_same_is_trained_once(chain):
    chosen = placements(chain[0], replace(SMALL, rank=1), [0, 0, 9.0, 9.0, 9.0, 0, 0, 0])
    assert len({(s.layers, s.rank, s.part) for s in chosen}) == len(chosen)
    names = {s.name for s in chosen}
    assert "band, LoRA" in names
    assert not {"most gradient energy, LoRA", "band, LoRA, rank 1"} & names


def test_what_the_study_of_tuning_trained_is_the_same_strategy(chain):
    mine = {s.name: s for s in placements(chain[0], SMALL, [0.0] * 8)}
    other = {s.name: s for s in study.compared(8, SMALL) if s.rank}
    assert {name: mine[name] for name in other} == other
    assert [study._named(mine[name]) for name in other] == [study._named(s) for s in other.values()]


def test_all_but_other_ranks_have_as_many_parameters(chain):
    vlm = chain[0]
    chosen = placements(vlm, SMALL, [1.0, 0, 0, 9.0, 0, 0, 0, 5.0])
    assert len({s.name for s in chosen}) == len(chosen)
    sizes_of = {s.name: parameter_count(vlm, s.layers, s.rank, s.part) for s in chosen}
    whole = sizes_of["band, LoRA"]
    for name, size in sizes_of.items():
        if "rank" not in name:
            assert size == pytest.approx(whole, rel=0.05), name
    assert sizes_of["band, LoRA, rank 2"] * 4 == whole == sizes_of["band, LoRA, rank 32"] / 4
    (energy,) = [s for s in chosen if s.name.startswith("most gradient energy")]
    assert energy.layers == (0, 3, 7)


def test_ranks_and_parts_have_fewer_seeds(chain):
    seeds = {s.name: len(seeds_of(s, SMALL)) for s in placements(chain[0], SMALL, [0.0] * 8)}
    assert {name for name, n in seeds.items() if n == sizes.FEWER} == {
        f"{name}, LoRA, {what}"
        for name in study.ADAPTED
        for what in ("rank 2", "rank 32", "attention", "MLP")
    }
    assert set(seeds.values()) == {sizes.FEWER, 4}


@pytest.mark.slow
def test_a_study_is_trained_once_and_found_again(chain, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(adapter_depth, "ENERGY_BATCHES", 1)
    kept = Records(ROOT / "none", tmp_path / "log")
    one = replace(SMALL, seeds=1)
    found = adapter_study(*chain, one, kept)
    chosen = placements(chain[0], one, found.energy)
    assert {name: [r["seed"] for r in runs] for name, runs in found.found.items()} == {
        s.name: [0] for s in chosen
    }
    trained = {name: runs[0]["parameters"] for name, runs in found.found.items()}
    assert trained == {s.name: parameter_count(chain[0], s.layers, s.rank, s.part) for s in chosen}
    items = [item for suite in SMALL.suites for item in found.evaluation[suite]]
    by_hand = []
    for record in found.found["late, LoRA"]:
        correct = [*record["correct"]["attributes"], *record["correct"]["digits"]]
        by_hand.append([(c - i.chance) / (1 - i.chance) for c, i in zip(correct, items, strict=True)])
    assert found.scores("late, LoRA", SMALL.suites) == pytest.approx(np.array(by_hand))
    assert found.scores("aligned", ["text"]).shape == (1, 2 * SMALL.items)
    assert len(found.energy) == 8
    assert min(found.energy) > 0
    monkeypatch.setattr(study, "tune", None)
    monkeypatch.setattr(adapter_depth, "gradient_energy", None)
    assert adapter_study(*chain, one, kept).found == found.found
    AcceleratorState._reset_state(reset_partial_state=True)
