"""Train a chain from its recipe and save every stage as a Hugging Face folder, with its record."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.render import digit_items
from vlalign_utils.evidence.results import tidy_json
from vlalign_utils.loading.load import load_vlm
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for, save
from vlalign_utils.zoo.chain_scores import score_chain
from vlalign_utils.zoo.learning_curve import score_curve
from vlalign_utils.zoo.parts_build import build_from_parts, complete
from vlalign_utils.zoo.parts_recipe import PartsRecipe
from vlalign_utils.zoo.recipe import STAGES, Recipe, read_any_recipe
from vlalign_utils.zoo.records import device_name, stage_record, versions
from vlalign_utils.zoo.stages import train_stage
from vlalign_utils.zoo.start import start
from vlalign_utils.zoo.suite_scores import suite_scores

ITEMS = 400  # per suite and stage, in the record: no handwriting is shown twice


def build(chain: str, device: str = "cpu") -> Path:
    """Train `chain` (or resume, or find it complete), score its stages and return its folder.

    Checkpoints live in .cache/zoo/<chain>/<recipe>/; a chain whose record names this recipe is complete.
    """
    recipe = read_any_recipe(ROOT / "zoo" / "recipes" / f"{chain}.yml")
    folder = ROOT / "zoo" / chain
    if isinstance(recipe, PartsRecipe):
        if complete(folder, recipe):
            print(
                f"zoo/{chain} is complete for its recipe; to train it again, delete it and .cache/zoo/{chain}"
            )
        else:
            build_from_parts(chain, recipe, device)
        if PartialState().is_main_process:
            score_chain(folder, "things", device)
            score_curve(folder, recipe, "things", device)
        return folder
    # Named after the recipe: what another recipe has trained is never taken for this one's.
    trained_for = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    cache = ROOT / ".cache" / "zoo" / chain / trained_for
    if _complete(folder, recipe):
        again = f"to train it again, delete it and {cache.relative_to(ROOT)}"
        print(f"zoo/{chain} is complete for its recipe; {again}")
        return folder
    accelerator = start(device)
    tokenizer = build_tokenizer_for(recipe)
    model, processor = build_model(recipe, tokenizer, recipe.seed), build_processor(recipe, tokenizer)
    # The backward pass of the fused attention is slow in bfloat16 on a CPU.
    model.set_attn_implementation("eager" if accelerator.device.type == "cpu" else "sdpa")
    stages = {}
    for stage in ("vision", *STAGES):
        history, trained = train_stage(stage, model, processor, recipe, accelerator, cache)
        stages[stage] = stage_record(getattr(recipe.stages, stage), history, trained)
        if stage in STAGES and accelerator.is_main_process:
            save(model, processor, folder / stage)
    if accelerator.is_main_process:
        record: dict[str, Any] = {
            "chain": chain,
            "seed": recipe.seed,
            "recipe": recipe.model_dump(),
            "versions": versions(),
            "device": device_name(accelerator),
            "data": _data(len(tokenizer)),
            "stages": stages,
            "evaluation": {stage: evaluate(folder / stage, accelerator.device) for stage in STAGES},
        }
        write_atomic(folder / "record.json", tidy_json(record))
    accelerator.wait_for_everyone()
    return folder


def evaluate(folder: Path, device: torch.device) -> dict[str, dict[str, Any]]:
    """Accuracy per suite on held-out items, with its 95 % interval and chance."""
    return suite_scores(load_vlm(folder, device=device.type), "drawn", ITEMS)


def _complete(folder: Path, recipe: Recipe) -> bool:
    record = folder / "record.json"
    if not record.is_file():
        return False
    try:
        return bool(json.loads(record.read_bytes())["recipe"] == recipe.model_dump())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record} is damaged ({error}): restore it from git, or delete it to train the chain again"
        ) from error


def _data(vocabulary: int) -> dict[str, Any]:
    return {
        **{f"share_of_pictures_{kind.name}": kind.share for kind in KINDS.values()},
        "digit_items_train": sum(len(items) for items in digit_items("train").values()),
        "digit_items_test": sum(len(items) for items in digit_items("test").values()),
        "vocabulary": vocabulary,
    }
