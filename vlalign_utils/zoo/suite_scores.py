"""Scores of a model on the suites of a world, with intervals, chance and numbers of items."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import WORLDS, load_suite
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence import intervals
from vlalign_utils.inference import lenient_scoring, scoring
from vlalign_utils.inference.scoring import Scores

EVALUATION_SEED = 2026


def suite_scores(
    vlm: VLM, world: str, n: int, names: Collection[str] | None = None, batch_size: int = 64
) -> dict[str, dict[str, Any]]:
    """Score a model on held-out items of each suite of a world.

    Args:
        vlm: a model with its processor.
        world: a key of `WORLDS`.
        n: items of a suite, or of each of the groups that it scores apart.
        names: suites to score; all where None.
        batch_size: items in one forward.

    Returns for each suite its mean score (`value`), the 95 % interval (`low`, `high`), `chance`, the number
    of items (`n`), and whether the score is above chance (`informative`). In a world that is scored leniently
    there are also the mean score by strict rules (`strict`) and the same numbers for each of its `groups`.

    Raises ValueError for an unknown world or suite.
    """
    if world not in WORLDS:
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}")
    suites, lenient = WORLDS[world].suites, WORLDS[world].lenient
    found = {}
    for name in suites if names is None else names:
        groups = suites[name].groups if name in suites else ()
        items = load_suite(name, n * max(1, len(groups)), seed=EVALUATION_SEED, world=world)
        if not lenient:
            found[name] = summary(scoring.evaluate(vlm, items, batch_size), items)
            continue
        strict, scores = lenient_scoring.evaluate_both(vlm, items, batch_size)
        found[name] = _both(scores, strict, items, range(len(items)))
        found[name]["groups"] = {
            group: _both(scores, strict, items, [i for i, item in enumerate(items) if item.group == group])
            for group in groups
        }
    return found


def summary(scores: Scores, items: Sequence[Item]) -> dict[str, Any]:
    """Mean score with its interval, chance, number of items, and whether it is above chance."""
    value, low, high, n = intervals.mean_score(scores.correct)
    numbers = {"value": value, "low": low, "high": high}
    numbers["chance"] = float(np.mean([item.chance for item in items]))
    rounded = {name: round(number, 4) for name, number in numbers.items()}
    return rounded | {"n": n, "informative": scoring.informative(scores, items)}


def as_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of `suite_scores` as lines of text: suite, score, interval, strict score, chance, N."""
    lines = [f"{'suite':<32} score [95 % interval]   strict chance     N"]
    for name, suite in found.items():
        parts = {name: suite} | {f"  {group}": row for group, row in suite.get("groups", {}).items()}
        for label, row in parts.items():
            interval = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            strict = row.get("strict", row["value"])
            lines.append(f"{label:<32} {interval:<22}  {strict:.3f}  {row['chance']:.3f} {row['n']:>5}")
    return "\n".join(lines)


def _both(scores: Scores, strict: Scores, items: Sequence[Item], rows: Sequence[int]) -> dict[str, Any]:
    chosen = list(rows)
    part = Scores(scores.correct[chosen], scores.prob[chosen])
    own = summary(part, [items[row] for row in chosen])
    return own | {"strict": round(float(strict.correct[chosen].mean()), 4)}
