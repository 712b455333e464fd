"""Train a chain from its recipe and save every stage as a Hugging Face folder, with its record."""

import hashlib
import json
import os
import platform
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.render import digit_items
from vlalign_utils.data.suites import SUITES, load_suite
from vlalign_utils.evidence import intervals
from vlalign_utils.evidence.results import tidy_json
from vlalign_utils.inference import scoring
from vlalign_utils.loading.load import load_vlm
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.tuning.accelerators import new_accelerator
from vlalign_utils.tuning.train_loop import History
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for, save
from vlalign_utils.zoo.recipe import STAGES, Recipe, Schedule, read_recipe
from vlalign_utils.zoo.stages import train_stage

ITEMS = 400  # per suite and stage, in the record: no handwriting is shown twice
EVALUATION_SEED = 2026


def build(chain: str, device: str = "cpu") -> Path:
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
    accelerator = start(device)
    tokenizer = build_tokenizer_for(recipe)
    model, processor = build_model(recipe, tokenizer, recipe.seed), build_processor(recipe, tokenizer)
    # The backward pass of the fused attention is slow in bfloat16 on a CPU.
    model.set_attn_implementation("eager" if accelerator.device.type == "cpu" else "sdpa")
    stages = {}
    for stage in ("vision", *STAGES):
        history, trained = train_stage(stage, model, processor, recipe, accelerator, cache)
        stages[stage] = _stage(getattr(recipe.stages, stage), history, trained)
        if stage in STAGES and accelerator.is_main_process:
            save(model, processor, folder / stage)
    if accelerator.is_main_process:
        record: dict[str, Any] = {
            "chain": chain,
            "seed": recipe.seed,
            "recipe": recipe.model_dump(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
            },
            "device": _device(accelerator),
            "data": _data(len(tokenizer)),
            "stages": stages,
            "evaluation": {stage: evaluate(folder / stage, accelerator.device) for stage in STAGES},
        }
        write_atomic(folder / "record.json", tidy_json(record))
    accelerator.wait_for_everyone()
    return folder


def start(device: str) -> Accelerator:
    """Mixed bfloat16 on `device` (`cpu`, or `cuda` for as many as `accelerate launch` gives); deterministic.

    Raises ValueError for another device, or one that is not there.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"DEVICE is {device!r}; expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("DEVICE is cuda, but torch sees no CUDA device; leave it out to train on the CPU")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what makes cuBLAS deterministic
    torch.use_deterministic_algorithms(True)
    # A stage leaves out what its batches do not reach: layers for images where there are none.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # The others wait while one process evaluates.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    return new_accelerator("bf16", device == "cpu", [unused, patience])


def evaluate(folder: Path, device: torch.device) -> dict[str, dict[str, Any]]:
    """Accuracy per suite on held-out items, with its 95 % interval and chance."""
    vlm = load_vlm(folder, device=device.type)
    found = {}
    for name in SUITES:
        items = load_suite(name, ITEMS, seed=EVALUATION_SEED)
        scores = scoring.evaluate(vlm, items)
        value, low, high, n = intervals.mean_score(scores.correct)
        numbers = {"value": value, "low": low, "high": high}
        numbers["chance"] = float(np.mean([item.chance for item in items]))
        found[name] = {k: round(x, 4) for k, x in numbers.items()}
        found[name] |= {"n": n, "informative": scoring.informative(scores, items)}
    return found


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


def _device(accelerator: Accelerator) -> str:
    cuda = accelerator.device.type == "cuda"
    cpu = f"CPU (torch threads: {torch.get_num_threads()})"
    return f"{accelerator.num_processes} x {torch.cuda.get_device_name(accelerator.device) if cuda else cpu}"


def _stage(schedule: Schedule, history: History, trained: int) -> dict[str, Any]:
    return {
        "steps": history.step,
        "batch_size": schedule.batch_size,
        "examples": history.step * schedule.batch_size,
        "seconds": round(history.seconds),
        "parameters_trained": trained,
        "curve": history.curve,
    }


def _data(vocabulary: int) -> dict[str, Any]:
    return {
        **{f"share_of_pictures_{kind.name}": kind.share for kind in KINDS.values()},
        "digit_items_train": sum(len(items) for items in digit_items("train").values()),
        "digit_items_test": sum(len(items) for items in digit_items("test").values()),
        "vocabulary": vocabulary,
    }
