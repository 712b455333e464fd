from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_parts
import torch
from blank_things import blank_things
from safetensors.torch import save_file
from tiny_models import build, tiny_processor

from vlalign_utils import load_vlm
from vlalign_utils.inference.scoring import Scores
from vlalign_utils.paths import ROOT
from vlalign_utils.tuning.lora import adapted
from vlalign_utils.zoo import chain_scores, learning_curve
from vlalign_utils.zoo.learning_curve import score_curve
from vlalign_utils.zoo.parts_recipe import PartsRecipe
from vlalign_utils.zoo.parts_stages import marked
from vlalign_utils.zoo.recipe import read_any_recipe
from vlalign_utils.zoo.scores_file import CURVE, FILE, ChainScores, StageScores, SuiteItems, write_scores

RANK = 2
N = 8


def scores(right: dict[str, float]) -> ChainScores:
    """Scores of the last stage: this share of the items of each suite."""
    found = ChainScores(chain="tiny", world="things", dtype="bfloat16")
    for suite, share in right.items():
        digits = ("1" * round(share * N)).ljust(N, "0")
        kept = StageScores(inputs="x", seconds=1, strict=digits, lenient=digits)
        found = found.noted("tuned", suite, SuiteItems(metric="answer", n=N, chance=0.1), kept)
    return found


def write(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights of training after a step, by their names in the model."""
    vlm = build("llava")[0]
    torch.manual_seed(step)
    with adapted(vlm, range(vlm.n_layers), RANK):
        names = {name: p for name, p in vlm.model.named_parameters() if ".default." in name}
        names |= {n: p for n, p in vlm.model.named_parameters() if "multi_modal_projector" in n}
        drawn = {name: torch.randn_like(p) for name, p in names.items()}
    plain = {name.replace(".default.", "."): value.bfloat16() for name, value in drawn.items()}
    save_file(plain, marked(folder / "tuned.ckpt", step))
    return drawn


@pytest.fixture
def chain(tiny_parts, monkeypatch, tmp_path):
    """A tiny chain whose last stage left weights of three steps, and the weights in them by step."""
    blank_things(monkeypatch)
    folder = tmp_path / "zoo" / "tiny"
    write_stage(folder / "tuned")
    tower = {f"model.vision_{n}": w for n, w in list(tower_weights().items())[:1]}
    save_file(tower, folder / "tower.safetensors")
    shell = SimpleNamespace(parts=made_of(), tokens={})
    for name, value in {
        "ROOT": tmp_path,
        "shell_of": lambda recipe: shell,
        "fresh_model": lambda *given, **named: build("llava")[0].model,
        "build_processor": lambda shell: tiny_processor(),
        "checkpoint": lambda chain, recipe, stage: tmp_path / "cache" / f"{stage}.ckpt",
        "ITEMS": 4,
    }.items():
        monkeypatch.setattr(learning_curve, name, value)
    (tmp_path / "cache").mkdir()
    return folder, {step: write(tmp_path / "cache", step) for step in (100, 200, 300)}


def write_stage(folder: Path) -> None:
    tiny_parts.write(folder, seed=0)


def tower_weights() -> dict[str, torch.Tensor]:
    return tiny_parts.tower_weights()


def made_of() -> dict[str, Any]:
    return dict(tiny_parts.MADE_OF)


@pytest.fixture
def asked(monkeypatch):
    """Numbers of images and numbers of items that are scored, in order."""
    done = []

    def both(vlm, items, batch_size):
        done.append((vlm.source.stage, len(items)))
        right = np.ones(len(items))
        return Scores(right, right), Scores(right, right)

    monkeypatch.setattr(chain_scores, "evaluate_both", both)
    return done


@pytest.fixture(scope="module")
def recipe():
    """A recipe of 400 steps in the last stage."""
    values = read_any_recipe(ROOT / "zoo" / "recipes" / "smollm.yml").model_dump()
    values |= {"tower": "tiny", "rank": RANK}
    values["stages"]["tuned"] |= {"steps": 400, "batch_size": 16}
    return PartsRecipe.model_validate(values)


@pytest.mark.slow
def test_suites_below_their_bars_are_scored_at_every_checkpoint(chain, asked, recipe):
    folder, weights = chain
    write_scores(folder / FILE, scores({"existence": 1.0, "counting": 0.5}))
    found = score_curve(folder, recipe, "things")
    assert asked == [(f"tuned-step{n}", 2) for n in (100, 200, 300)] + [("tuned", 2)]
    assert list(found.suites) == ["counting"]
    assert sorted(found.stages, key=int) == ["1600", "3200", "4800", "6400"]
    assert (folder / CURVE).is_file()
    # A point has the weights of its own step.
    parts = load_vlm(folder, "tuned", device="cpu").model.state_dict()
    then = load_vlm(folder.parents[1] / "cache" / "tuned-step200", device="cpu").model.state_dict()
    name = next(n for n in then if n.endswith("layers.0.mlp.up_proj.weight"))
    a, b = (
        weights[200][name.replace(".weight", f".lora_{x}.default.weight")].bfloat16().double() for x in "AB"
    )
    assert torch.allclose(then[name].double(), parts[name].double() + 2 * b @ a, rtol=0.02, atol=0.02)
    asked.clear()
    assert score_curve(folder, recipe, "things") == found
    assert not asked


@pytest.mark.slow
def test_a_chain_that_reaches_its_bars_has_no_curve(chain, asked, recipe):
    folder, _ = chain
    write_scores(folder / FILE, scores({"existence": 1.0}))
    assert score_curve(folder, recipe, "things") is None
    assert not asked
    assert not (folder / CURVE).exists()


@pytest.mark.slow
def test_without_scores_or_checkpoints_nothing_is_computed(chain, asked, recipe):
    folder, _ = chain
    assert score_curve(folder, recipe, "things") is None
    write_scores(folder / FILE, scores({"existence": 0.5}))
    for path in (folder.parents[1] / "cache").glob("*.safetensors"):
        path.unlink()
    assert score_curve(folder, recipe, "things") is None
    assert not asked
