import dataclasses
import json

import numpy as np
import pytest
import tiny_parts
from blank_things import blank_things

from vlalign_utils.data.worlds import WORLDS, load_suite
from vlalign_utils.evidence.results import ResultsError
from vlalign_utils.inference.scoring import Scores
from vlalign_utils.zoo import chain_scores, scores_file
from vlalign_utils.zoo.chain_scores import items_digest, score_chain
from vlalign_utils.zoo.scores_file import FILE, of_seeds, packed, read_scores, unpacked

SUITES = ("naming", "captions", "text")


@pytest.fixture
def chain(tiny_parts, monkeypatch, tmp_path):
    """Three stages of a tiny model, and a world of three suites with blank images."""
    blank_things(monkeypatch)
    suites = {name: WORLDS["things"].suites[name] for name in SUITES}
    monkeypatch.setitem(WORLDS, "things", dataclasses.replace(WORLDS["things"], suites=suites))
    monkeypatch.setattr(chain_scores, "ITEMS", 6)
    folder = tmp_path / "zoo" / "tiny"
    for seed, stage in enumerate(("base", "aligned", "tuned")):
        write(folder / stage, seed)
    return folder


def write(folder, seed):
    tiny_parts.write(folder, seed=seed)


@pytest.fixture
def asked(monkeypatch):
    """Stages and suites that are scored, in order; the first of two items is right, by lenient rules both."""
    done = []

    def both(vlm, items, batch_size):
        name = {"answer": "text" if items[0].image is None else "naming", "cider": "captions"}[
            items[0].metric
        ]
        done.append((vlm.source.stage, name))
        strict = 1 - np.arange(len(items)) % 2.0
        lenient = np.full(len(items), 0.25 if name == "captions" else 1.0)
        return Scores(strict, strict), Scores(lenient, lenient)

    monkeypatch.setattr(chain_scores, "evaluate_both", both)
    return done


ALL = [(stage, suite) for suite in SUITES for stage in ("base", "aligned", "tuned")]


@pytest.mark.slow
def test_every_stage_is_scored_on_every_suite_once(chain, asked):
    found = score_chain(chain, "things")
    assert asked == ALL
    assert read_scores(chain / FILE) == found
    assert (found.chain, found.world) == ("tiny", "things")
    assert found.dtype in ("bfloat16", "float32")  # processors differ in it
    assert found.suites["naming"].n == 12  # six of each of its groups
    assert found.of("tuned", "naming", rules="strict").tolist() == [1, 0] * 6
    # Items are about a trained style and the held-out one in turn.
    assert found.of("tuned", "naming", "trained styles", "strict").tolist() == [1] * 6
    assert found.of("tuned", "naming", "held-out style", "strict").tolist() == [0] * 6
    assert found.of("aligned", "captions").tolist() == [0.25] * 6
    assert found.chance("naming", "held-out style") == pytest.approx(
        np.mean([item.chance for item in load_suite("naming", 12, seed=2026, world="things")]), abs=1e-4
    )
    asked.clear()
    assert score_chain(chain, "things") == found
    assert not asked


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_suite_it_was_at(chain, asked, monkeypatch):
    both = chain_scores.evaluate_both

    def cut(vlm, items, batch_size):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return both(vlm, items, batch_size)

    monkeypatch.setattr(chain_scores, "evaluate_both", cut)
    with pytest.raises(KeyboardInterrupt):
        score_chain(chain, "things")
    monkeypatch.setattr(chain_scores, "evaluate_both", both)
    score_chain(chain, "things")
    assert asked == ALL


@pytest.mark.slow
def test_what_has_changed_is_scored_again_and_nothing_else(chain, asked, monkeypatch):
    score_chain(chain, "things")
    asked.clear()
    write(chain / "tuned", 7)
    score_chain(chain, "things")
    assert asked == [("tuned", suite) for suite in SUITES]
    asked.clear()
    changed = dataclasses.replace(
        WORLDS["things"].suites["text"],
        make=lambda n, rng, split: [
            dataclasses.replace(item, accepted=("another",))
            for item in load_suite("text", n, seed=1, world="drawn")
        ],
    )
    monkeypatch.setitem(WORLDS["things"].suites, "text", changed)
    score_chain(chain, "things")
    assert asked == [(stage, "text") for stage in ("base", "aligned", "tuned")]
    asked.clear()
    monkeypatch.setattr(chain_scores, "RULES", 2)
    score_chain(chain, "things")
    assert asked == ALL


@pytest.mark.slow
def test_a_real_run_of_a_tiny_chain(chain):
    """Without any part of it replaced: a random model answers next to nothing."""
    found = score_chain(chain, "things")
    for stage in ("base", "aligned", "tuned"):
        assert found.of(stage, "naming").mean() < 0.5
        assert 0 <= found.of(stage, "captions").mean() < 0.5
        assert len(found.of(stage, "text", rules="strict")) == 6


def test_the_digest_of_items_is_that_of_all_they_hold(monkeypatch):
    items = load_suite("reading", 2, world="things")
    first = items_digest(items)
    assert items_digest(load_suite("reading", 2, world="things")) == first
    image = items[0].image.copy()
    image.putpixel((0, 0), (1, 2, 3))
    for change in (
        {"image": image},
        {"prompt": "?"},
        {"accepted": ("a",)},
        {"guess": 0.5},
        {"choices": ("b",)},
    ):
        assert items_digest([dataclasses.replace(items[0], **change), items[1]]) != first


def of_chain(name, lenient, group=(0, 1)):
    items = {
        "metric": "answer",
        "n": len(lenient),
        "chance": 0.1,
        "groups": {"a": 0.1, "b": 0.2},
        "group": group,
    }
    scores = {"inputs": "x", "seconds": 1, "strict": "0" * len(lenient), "lenient": lenient}
    return scores_file.ChainScores.model_validate_json(
        json.dumps(
            {
                "chain": name,
                "world": "things",
                "dtype": "bfloat16",
                "suites": {"naming": items},
                "stages": {"tuned": {"naming": scores}},
            }
        )
    )


def test_scores_of_seeds_are_those_of_the_same_items():
    chains = [of_chain("one", "10"), of_chain("two", "11")]
    assert of_seeds(chains, "tuned", "naming").tolist() == [[1, 0], [1, 1]]
    assert of_seeds(chains, "tuned", "naming", "b").tolist() == [[0], [1]]
    assert of_seeds(chains, "base", "naming") is None
    with pytest.raises(ResultsError, match="one, three were asked different items of naming: run make zoo"):
        of_seeds([chains[0], of_chain("three", "11", (1, 0))], "tuned", "naming")


@pytest.mark.parametrize("scores", [[1.0, 0.0, 1.0], [0.125, 1.0]])
def test_scores_are_unpacked_as_they_were(scores):
    assert unpacked(packed(np.array(scores))).tolist() == scores


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"chain": 3}')
    with pytest.raises(ResultsError, match=r"scores.json is no file of scores: chain: .*restore it from git"):
        read_scores(tmp_path / FILE)
    assert read_scores(tmp_path / "none.json") is None
