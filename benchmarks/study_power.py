"""`python -m benchmarks.study_power STUDY ARCH RULES`: what a study of tuning can decide at its size.

STUDY holds the records of an earlier study of this model, the pilot; RULES is the commit in which the rules
were written. Differences of strategies have a part of the seed, one of the item, and a rest: as large ones
are drawn for the planned seeds and items, and the intervals of claims are counted. Run it before the study;
it writes `book/power_tuning.json`.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from vlalign_utils.data.worlds import load_suite
from vlalign_utils.evidence import claim_rules, claims
from vlalign_utils.evidence.intervals import above_chance
from vlalign_utils.inference import scoring
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.parameters import defaults, read_notebook
from vlalign_utils.pipeline.stages import load_stages

OUT = ROOT / "book" / "power_tuning.json"
TUNING = "05_tuning"
DRAWS = 400  # of studies, for each effect
REACHED = 0.9  # of the tuned stage's gain, what full tuning is expected to reach
MARGIN = 0.05  # of a ratio of gains below 1; smallest effect of interest of a score, too


def run(
    study: Annotated[Path, typer.Argument(help="records of the pilot")],
    arch: Annotated[str, typer.Argument(help="entry of architectures.yml")],
    rules: Annotated[str, typer.Argument(help="commit that holds the rules")],
) -> None:
    """Write the power of the planned study."""
    records = [json.loads(line) for line in study.read_text().splitlines()]
    entry = registry.load().architecture(arch)
    chapter = defaults(read_notebook(TUNING, ROOT), TUNING)
    planned = {**chapter, **entry.parameters.get(TUNING, {})}
    seeds, items = planned["seeds"], planned["items"] * len(planned["suites"])
    by_name = dict(_tables(records, entry.world))
    pilot = by_name["band"].shape[1]
    pairs = {("band-tuning", "score, band minus early"): ("band", "early")}
    pairs |= {("band-tuning", "score, band minus late"): ("band", "late")}
    pairs |= {("frozen-core", "score, band minus connector only"): ("band", "connector")}
    gaps = {of: by_name[one] - by_name[other] for of, (one, other) in pairs.items()}
    gain = REACHED * _gain(entry, records)
    gaps["band-tuning", "gain, band over full"] = (by_name["band"] - by_name["full"]) / gain
    rows = []
    for (claim, condition), gap in gaps.items():
        row = {"claim": claim, "condition": condition, "pilot_n": pilot, "n": items, "smallest": MARGIN}
        row |= _powers(gap, seeds, items)
        if claim_rules.claim(claim).conditions[condition].smallest is None:
            del row["equivalence"]
        rows.append(row)
    about: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "rules": rules, "architecture": arch}
    about["pilot_seeds"] = sorted({r["seed"] for r in records if r["what"] == "run"})
    about["from"] = (
        f"from an earlier study of {len(about['pilot_seeds'])} seeds and {pilot} of the same items, "
        f"for {seeds} seeds"
    )
    write_atomic(OUT, json.dumps({**about, "conditions": rows}, indent=1) + "\n")
    typer.echo(f"written to {OUT}")


def _tables(records: list[dict[str, Any]], world: str) -> Iterator[tuple[str, np.ndarray]]:
    runs = [r for r in records if r["what"] == "run"]
    suites = runs[0]["suites"]
    asked = [item for s in suites for item in load_suite(s, runs[0]["items"], world=world)]
    chance = np.array([item.chance for item in asked])
    for name in dict.fromkeys(r["strategy"] for r in runs):
        correct = [[c for s in suites for c in r["correct"][s]] for r in runs if r["strategy"] == name]
        yield name, np.stack([above_chance(np.array(row, dtype=float), chance) for row in correct])


def _gain(entry: registry.Architecture, records: list[dict[str, Any]]) -> float:
    """What the model's own tuned stage scores more than its aligned one, on the pilot's items."""
    first = next(r for r in records if r["what"] == "run")
    asked = [i for s in first["suites"] for i in load_suite(s, first["items"], world=entry.world)]
    chance = np.array([item.chance for item in asked])
    aligned, tuned = (
        above_chance(scoring.evaluate(vlm, asked).correct, chance).mean()
        for vlm in load_stages(entry, 2).values()
    )
    return float(tuned - aligned)


def _powers(gap: np.ndarray, seeds: int, items: int) -> dict[str, Any]:
    """Shares of simulated studies whose interval excludes 0, for two effects, or lies within the margin."""
    parts = _components(gap)
    draw = np.random.default_rng(0)
    shares = []
    for effect in (MARGIN, 2 * MARGIN, 0.0):
        hits = 0
        for _ in range(DRAWS):
            table = effect + np.sqrt(parts.seeds) * draw.normal(size=(seeds, 1))
            table = table + np.sqrt(parts.items) * draw.normal(size=(1, items))
            table = table + np.sqrt(parts.rest) * draw.normal(size=(seeds, items))
            found = claims.interval(table, 0)
            hits += found.low > 0 if effect else abs(found.value) + (found.high - found.value) < MARGIN
        shares.append(round(hits / DRAWS, 2))
    of_mean = parts.seeds / seeds + parts.items / items + parts.rest / (seeds * items)
    keys = ("power", "power_twice", "equivalence")
    return {"error": round(float(np.sqrt(of_mean)), 4), **dict(zip(keys, shares, strict=True))}


class _Parts(NamedTuple):
    """Variances of a two-way layout: of seeds, of items, and the rest (interaction and noise)."""

    seeds: float
    items: float
    rest: float


def _components(table: np.ndarray) -> _Parts:
    """Variance components of a table [seeds, items] by the method of moments, none below 0."""
    seeds, items = table.shape
    mean, of_seeds, of_items = table.mean(), table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    rest = float(((table - of_seeds - of_items + mean) ** 2).sum()) / ((seeds - 1) * (items - 1))
    between = items * float(of_seeds.var(ddof=1)), seeds * float(of_items.var(ddof=1))
    return _Parts(max(0.0, (between[0] - rest) / items), max(0.0, (between[1] - rest) / seeds), rest)


if __name__ == "__main__":
    typer.run(run)
