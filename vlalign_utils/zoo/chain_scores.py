"""Score every stage of a chain on every suite of a world, once: what is on record and current stays."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import torch

from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import WORLDS, load_suite
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.lenient_scoring import evaluate_both
from vlalign_utils.loading.assembled import identity
from vlalign_utils.loading.load import load_vlm
from vlalign_utils.zoo.recipe import STAGES
from vlalign_utils.zoo.scores_file import (
    FILE,
    ChainScores,
    StageScores,
    SuiteItems,
    packed,
    read_scores,
    write_scores,
)
from vlalign_utils.zoo.start import half_precision
from vlalign_utils.zoo.suite_scores import EVALUATION_SEED

ITEMS = 500  # of a suite, or of each of its groups
RULES = 1  # of scoring: raise it when another text counts as right, or another choice is taken


def score_chain(folder: Path, world: str, device: str = "cpu", batch_size: int = 64) -> ChainScores:
    """Score every stage of a chain on every suite of a world, and keep the scores in its `scores.json`.

    Args:
        folder: the chain's, with its stages as `write_stage` leaves them.
        world: a key of `WORLDS`.
        device: where the stages are loaded.
        batch_size: items in one forward.

    Raises ValueError for a stage that is damaged or has a part that is not installed.
    """
    stages, suites = {stage: folder / stage for stage in STAGES}, list(WORLDS[world].suites)
    return score_stages(folder / FILE, stages, world, suites, ITEMS, device, batch_size)


def score_stages(
    path: Path,
    stages: Mapping[str, Path],
    world: str,
    suites: Sequence[str],
    n: int,
    device: str = "cpu",
    batch_size: int = 64,
) -> ChainScores:
    """Score stages, by name and folder, on suites of a world, and keep the scores in the file at `path`.

    What the file holds for the same weights and items is not computed again, and a killed run goes on with
    the suite that it was at. `n` is the number of items of a suite, or of each of its groups.
    Raises ValueError as `score_chain` does.
    """
    chain = path.parent.name
    kept = read_scores(path)
    if kept is None or kept.world != world:
        # In the precision of the stages' files, where the processor computes in it.
        dtype = str(half_precision(torch.device(device).type)).removeprefix("torch.")
        kept = ChainScores(chain=chain, world=world, dtype=dtype)
    dtype = kept.dtype
    made_of = {stage: identity(folder) for stage, folder in stages.items()}

    @cache
    def loaded(stage: str) -> VLM:
        return load_vlm(stages[stage].parent, stages[stage].name, device=device, dtype=dtype)

    for number, name in enumerate(suites, 1):
        groups = WORLDS[world].suites[name].groups
        items = load_suite(name, n * max(1, len(groups)), seed=EVALUATION_SEED, world=world)
        asked = f"{RULES} {dtype} {items_digest(items)}"
        for stage in stages:
            inputs = hashlib.sha256(f"{made_of[stage]} {asked}".encode()).hexdigest()
            if kept.current(stage, name, inputs):
                continue
            model, start = loaded(stage), time.monotonic()
            strict, lenient = evaluate_both(model, items, batch_size)
            seconds = round(time.monotonic() - start)
            scores = StageScores(
                inputs=inputs,
                seconds=seconds,
                strict=packed(strict.correct),
                lenient=packed(lenient.correct),
            )
            kept = kept.noted(stage, name, about_items(items, tuple(groups)), scores)
            write_scores(path, kept)
            mean = lenient.correct.mean()
            print(f"{chain}, suite {number} of {len(suites)}: {name}, {stage}: {mean:.3f}, {seconds} s")
    return kept


def about_items(items: Sequence[Item], groups: Sequence[str] = ()) -> SuiteItems:
    """What the file says of a suite's items; `groups` are those that are scored apart."""

    def chance(group: str | None = None) -> float:
        return round(float(np.mean([i.chance for i in items if group in (None, i.group)])), 4)

    return SuiteItems(
        metric=items[0].metric,
        n=len(items),
        chance=chance(),
        groups={group: chance(group) for group in groups},
        group=[groups.index(item.group) for item in items] if groups else [],
    )


def items_digest(items: Sequence[Item]) -> str:
    """SHA-256 of everything that items ask and take for right, their pixels included."""
    digest = hashlib.sha256()
    for item in items:
        said = {f.name: getattr(item, f.name) for f in fields(item) if f.name != "image"}
        digest.update(json.dumps(said, sort_keys=True).encode())
        if item.image is not None:
            digest.update(f"{item.image.mode} {item.image.size}".encode() + item.image.tobytes())
    return digest.hexdigest()
