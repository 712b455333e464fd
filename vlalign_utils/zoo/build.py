"""Train a chain from its recipe and save every stage as a Hugging Face folder, with its record."""

import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from vlalign_utils import stats, tasks
from vlalign_utils.data.render import digit_items
from vlalign_utils.data.tokenizer import build_tokenizer
from vlalign_utils.loading import load_vlm
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.zoo.loop import History
from vlalign_utils.zoo.pictures import draw_pictures
from vlalign_utils.zoo.recipe import STAGES, Recipe, Schedule, read_recipe
from vlalign_utils.zoo.stages import assemble, build_processor, train_base, train_on_pictures, train_vision

ITEMS = 800  # per suite and stage, in the record
EVALUATION_SEED = 2026

SCENES = ("attributes", "existence", "counting")  # suites about scenes, in the record also taken together
# What a tuned chain should reach on held-out items, by suite; knowledge only has to beat chance.
BARS = dict.fromkeys((*SCENES, "scenes"), 0.85) | {"digits": 0.9, "knowledge": None, "text": 0.9}


def build(chain: str) -> Path:
    """Train `chain` (or resume, or find it complete) and return its folder.

    Checkpoints live in .cache/zoo/<chain>/<recipe>/; a chain whose record names this recipe is complete.
    """
    recipe = read_recipe(ROOT / "zoo" / "recipes" / f"{chain}.yml")
    folder = ROOT / "zoo" / chain
    # Named after the recipe: what another recipe has trained is never taken for this one's.
    trained_for = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    cache = ROOT / ".cache" / "zoo" / chain / trained_for
    if _complete(folder, recipe):
        again = f"to train it again, delete it and {cache.relative_to(ROOT)}"
        print(f"zoo/{chain} is complete for its recipe; {again}")
        return folder
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer()
    pictures = draw_pictures(recipe.pictures.scenes, recipe.pictures.digits, recipe.seed)
    vision, seen_by_vision = train_vision(recipe, tokenizer, pictures, cache / "vision.ckpt")
    language, seen_by_base = train_base(recipe, tokenizer, cache / "base.ckpt")
    model, processor = assemble(recipe, tokenizer, vision, language), build_processor(recipe, tokenizer)
    stages = {
        "vision": _stage(recipe.stages.vision, seen_by_vision, vision),
        "base": _stage(recipe.stages.base, seen_by_base, language),
    }
    _save(model, processor, folder / "base")
    for stage in STAGES[1:]:
        history = train_on_pictures(stage, model, recipe, tokenizer, pictures, cache / f"{stage}.ckpt")
        stages[stage] = _stage(getattr(recipe.stages, stage), history, model)
        _save(model, processor, folder / stage)
    record = {
        "chain": chain,
        "seed": recipe.seed,
        "recipe": recipe.model_dump(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "data": _data(recipe, tokenizer),
        "stages": stages,
        "evaluation": {stage: evaluate(folder / stage) for stage in STAGES},
    }
    write_atomic(folder / "record.json", json.dumps(record, indent=1) + "\n")
    return folder


def evaluate(folder: Path) -> dict[str, dict[str, Any]]:
    """Accuracy per suite on held-out items, with a 95 % Wilson interval, chance and the bar to reach."""
    vlm = load_vlm(folder)
    items = {name: tasks.load(name, ITEMS, seed=EVALUATION_SEED) for name in tasks.SUITES}
    correct = {name: tasks.evaluate(vlm, suite).correct for name, suite in items.items()}
    chance = {name: np.array([item.chance for item in suite]) for name, suite in items.items()}
    for by_suite in (correct, chance):
        by_suite["scenes"] = np.concatenate([by_suite[name] for name in SCENES])
    return {name: _score(correct[name], chance[name], bar) for name, bar in BARS.items()}


def _score(correct: np.ndarray, chance: np.ndarray, bar: float | None) -> dict[str, Any]:
    interval = stats.wilson(int(correct.sum()), len(correct))
    numbers = {"value": correct.mean(), "low": interval.low, "high": interval.high, "chance": chance.mean()}
    return {name: round(float(x), 4) for name, x in numbers.items()} | {"n": len(correct), "bar": bar}


def _complete(folder: Path, recipe: Recipe) -> bool:
    record = folder / "record.json"
    return record.is_file() and json.loads(record.read_text())["recipe"] == recipe.model_dump()


def _stage(schedule: Schedule, history: History, model: nn.Module) -> dict[str, Any]:
    return {
        "steps": history.step,
        "batch_size": schedule.batch_size,
        "examples": history.step * schedule.batch_size,
        "seconds": round(history.seconds),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "curve": history.curve,
    }


def _data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {
        "pictures_of_scenes": recipe.pictures.scenes,
        "pictures_of_digits": recipe.pictures.digits,
        "digit_items_train": sum(len(items) for items in digit_items("train").values()),
        "digit_items_test": sum(len(items) for items in digit_items("test").values()),
        "vocabulary": len(tokenizer),
    }


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write a stage in half precision, whole or not at all; the model itself keeps its precision."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    half = {name: weight.half() for name, weight in model.state_dict().items()}
    dtype, model.config.dtype = model.config.dtype, torch.float16
    model.save_pretrained(partial, state_dict=half)
    model.config.dtype = dtype
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
