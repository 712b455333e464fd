"""Train a chain around pretrained parts and keep of every stage what was trained, with its record."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.results import tidy_json
from vlalign_utils.loading.load import load_vlm
from vlalign_utils.loading.parts import LANGUAGE_MODEL, published_file
from vlalign_utils.loading.rounding import rounding
from vlalign_utils.loading.stage_file import read_stage, write_stage
from vlalign_utils.paths import ROOT, atomic_file, sha256, write_atomic
from vlalign_utils.tuning.train_loop import History, Schedule
from vlalign_utils.zoo.fast_vlm import fast_vlm
from vlalign_utils.zoo.from_parts import build_processor, fresh_model
from vlalign_utils.zoo.naming_data import naming_batches, sizes
from vlalign_utils.zoo.parts_recipe import PartsRecipe, PartsShell
from vlalign_utils.zoo.parts_stages import train_answers, train_connector
from vlalign_utils.zoo.records import device_name, stage_record, versions
from vlalign_utils.zoo.start import half_precision, start
from vlalign_utils.zoo.things_data import captioned, questioned
from vlalign_utils.zoo.tower_scores import tower_embedding, tower_scores
from vlalign_utils.zoo.tower_stage import grid, train_tower

RECORD = "record.json"
TOWER = "tower.safetensors"
TOWER_SCORES = "tower_scores.json"
CONNECTOR = "connector.safetensors"


def build_from_parts(chain: str, recipe: PartsRecipe, device: str) -> Path:
    """Train `chain`, or resume, and return its folder; stages that are complete are not trained again.

    Checkpoints live in .cache/zoo/<chain>/, each named after what of the recipe decides it. Raises ValueError
    when the tower, or the one that it learns from, is another chain's that is not there.
    """
    folder = ROOT / "zoo" / chain
    shell = shell_of(recipe)
    processor = build_processor(shell)
    tower = ROOT / "zoo" / recipe.tower / TOWER
    other = recipe.teacher if recipe.tower == chain else recipe.tower
    if other and not (missing := ROOT / "zoo" / other / TOWER).is_file():
        raise ValueError(f"{missing} is missing: train it first, with make zoo CHAIN={other}")
    if recipe.tower == chain and not trained(folder, recipe, "vision"):
        _vision(chain, recipe, shell, processor, device)
    accelerator = start(device)
    model = fresh_model(recipe.seed, half_precision(device), [tower], shell)
    _set_attention(model, accelerator)
    vlm = VLM(model, processor)
    own: dict[str, Any] = {"model": model, "processor": processor, "shared": [tower]}
    own |= {"parts": shell.parts, "tokens": shell.tokens}
    if accelerator.is_main_process:
        write_stage(folder / "base", **own, seed=recipe.seed)
    where = {"seed": recipe.seed, "accelerator": accelerator}
    schedules = recipe.stages
    if trained(folder, recipe, "aligned"):
        connector = load_file(folder / "aligned" / CONNECTOR)
    else:
        history, connector = train_connector(
            vlm,
            partial(captioned, side=recipe.side),
            schedules.aligned,
            **where,
            checkpoint=checkpoint(chain, recipe, "aligned"),
        )
        if accelerator.is_main_process:
            write_stage(folder / "aligned", **own, weights={CONNECTOR: connector})
            _record(folder, recipe, "aligned", schedules.aligned, history, connector, accelerator)
    _place(model, connector)
    history, connector, lora = train_answers(
        vlm,
        partial(questioned, side=recipe.side),
        schedules.tuned,
        recipe.rank,
        **where,
        checkpoint=checkpoint(chain, recipe, "tuned"),
    )
    if accelerator.is_main_process:
        alpha = 2.0 * recipe.rank
        write_stage(folder / "tuned", **own, weights={CONNECTOR: connector}, lora=lora, alpha=alpha)
        _record(folder, recipe, "tuned", schedules.tuned, history, connector | lora, accelerator)
    accelerator.wait_for_everyone()
    return folder


def shell_of(recipe: PartsRecipe) -> PartsShell:
    """The class, parts and processor of a chain: FastVLM's where its recipe names no other."""
    return recipe.shell or fast_vlm(recipe.side)


def checkpoint(chain: str, recipe: PartsRecipe, stage: str) -> Path:
    """A stage's checkpoint, named after what of the recipe decides the stage."""
    return ROOT / ".cache" / "zoo" / chain / f"{stage}-{decided_by(recipe, stage)}.ckpt"


def decided_by(recipe: PartsRecipe, stage: str) -> str:
    """Hash of what of the recipe decides a stage: later stages do not."""
    stages = list(type(recipe.stages).model_fields)
    later = set(stages[stages.index(stage) + 1 :])
    decides = recipe.model_dump_json(exclude={"stages": later} | ({} if stage == "tuned" else {"rank": True}))
    return hashlib.sha256(decides.encode()).hexdigest()[:12]


def complete(folder: Path, recipe: PartsRecipe) -> bool:
    """Whether a chain's folder holds every stage, trained by this recipe and undamaged."""
    stages = [s for s in type(recipe.stages).model_fields if s != "vision" or recipe.tower == folder.name]
    return all(trained(folder, recipe, stage) for stage in stages)


def trained(folder: Path, recipe: PartsRecipe, stage: str) -> bool:
    """Whether a chain's folder holds a stage, trained by this recipe and undamaged.

    Raises ValueError for a record that is damaged.
    """
    if _recorded(folder).get(stage, {}).get("recipe") != decided_by(recipe, stage):
        return False
    try:
        # Every stage holds the hash of the tower.
        read_stage(folder / ("base" if stage == "vision" else stage))
    except (OSError, ValueError):
        return False
    return True


def _recorded(folder: Path) -> dict[str, Any]:
    """What a chain's record says of its stages, by stage; nothing where there is none."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        stages: dict[str, Any] = json.loads(path.read_bytes())["stages"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): restore it from git, or delete it to train the chain again"
        ) from error
    return stages


def _vision(chain: str, recipe: PartsRecipe, shell: PartsShell, processor: Any, device: str) -> None:
    """Train the tower, or resume, and write what was trained of it beside the chain's stages."""
    schedule, tower = recipe.stages.vision, ROOT / "zoo" / chain / TOWER
    # On a CPU a transformer is twice as fast in half precision.
    accelerator = start(device, "no" if recipe.teacher is None else "bf16")
    vlm, teacher = VLM(fresh_model(recipe.seed, shell=shell), processor), None
    _set_attention(vlm.model, accelerator)
    if recipe.teacher is not None:
        teacher = load_vlm(ROOT / "zoo" / recipe.teacher, "base", accelerator.device, half_precision(device))
    cells = grid(vlm, recipe.side)

    def batches(first: int) -> Any:
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        seeing = teacher and teacher.processor
        return naming_batches(processor, recipe.side, cells, schedule, recipe.seed, first, share, seeing)

    history, weights = train_tower(
        vlm,
        recipe.tower_trained,
        sizes(),
        batches,
        schedule,
        teacher=teacher,
        seed=recipe.seed,
        accelerator=accelerator,
        checkpoint=checkpoint(chain, recipe, "vision"),
    )
    if accelerator.is_main_process:
        tower.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(tower) as unfinished:
            # A tower that was trained with its channels last has its weights so, too.
            contiguous = {name: value.contiguous() for name, value in weights.items()}
            save_file(contiguous, unfinished, metadata={"format": "pt"})
        _record(tower.parent, recipe, "vision", schedule, history, weights, accelerator)
        _score_tower(recipe, shell, processor, tower)
    accelerator.wait_for_everyone()


def _set_attention(model: Any, accelerator: Accelerator) -> None:
    # The fused attention is slow in bfloat16 on a CPU.
    model.set_attn_implementation("eager" if accelerator.device.type == "cpu" else "sdpa")


def _score_tower(recipe: PartsRecipe, shell: PartsShell, processor: Any, tower: Path) -> None:
    """Note beside a tower what it tells apart, and what it did before it was trained."""
    path, digest = tower.with_name(TOWER_SCORES), sha256(tower)
    if path.is_file() and json.loads(path.read_bytes())["tower"] == digest:
        return
    scores = {}
    for name, weights in (("before", []), ("after", [tower])):
        seeing = VLM(fresh_model(recipe.seed, weights=weights, shell=shell), processor)
        scores[name] = tower_scores(tower_embedding(seeing), recipe.side)
    write_atomic(path, tidy_json({"tower": digest, **scores}))


def _record(
    folder: Path,
    recipe: PartsRecipe,
    stage: str,
    schedule: Schedule,
    history: History,
    weights: dict[str, Tensor],
    accelerator: Accelerator,
) -> None:
    """Note in the chain's record how a stage was trained; what it says of others stays."""
    path = folder / RECORD
    before = json.loads(path.read_bytes()) if path.is_file() else {}
    stages = _recorded(folder)
    size = sum(value.numel() for value in weights.values())
    stages[stage] = stage_record(schedule, history, size) | {
        "device": device_name(accelerator),
        "versions": versions(),
        "recipe": decided_by(recipe, stage),
    }
    record: dict[str, Any] = {
        "chain": folder.name,
        "seed": recipe.seed,
        "recipe": recipe.model_dump(),
        "stages": stages,
        "rounding": before.get("rounding") or _rounding(),
    }
    write_atomic(path, tidy_json(record))


def _rounding() -> dict[str, float]:
    found = rounding(published_file(LANGUAGE_MODEL))
    return {name: round(value, 4) for name, value in found._asdict().items()}


@torch.no_grad()
def _place(model: Any, weights: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, value in weights.items():
        own[name].copy_(value)
