"""`python -m benchmarks.power PILOT RULES`: what the planned numbers of items can decide.

PILOT is a folder of results of chapters with fewer and other items than those that decide, RULES the commit
in which the rules were written. Run it before the chapters that decide; it writes `book/power.json`, or what
`--out` names, and takes the claims that it states anew out of the other files.
"""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from scipy.stats import t

from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.claim_rules import Outcome
from vlalign_utils.evidence.power import equivalence_power, power
from vlalign_utils.evidence.results import Results, read
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.parameters import defaults, read_notebook

OUT = ROOT / "book" / "power.json"
EVERY = "power*.json"  # files of this kind, those on tuning among them
SHARE = {"02_probing": "items", "03_geometry": "items", "04_causal": "compared"}  # what N goes with
SHARE_OF = {"bypass": "bypassed"}  # claims that have items of their own


def run(
    pilot: Annotated[Path, typer.Argument(help="folder of the pilot's results")],
    rules: Annotated[str, typer.Argument(help="commit that holds the rules")],
    out: Annotated[Path, typer.Option(help="file to write")] = OUT,
) -> None:
    """Write standard deviations of the pilot, and the power of the planned chapters."""
    found = [read(path) for path in sorted(pilot.glob("*.json"))]
    rows = [row for one in found for row in _rows(one)]
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "rules": rules, "architecture": found[0].arch}
    seeds = sorted({int(str(one.params["seed"])) for one in found})
    _write(out, {**about, "pilot_seeds": seeds, "conditions": rows})
    anew = {row["claim"] for row in rows}
    for other in set(out.parent.glob(EVERY)) - {out}:
        stated = json.loads(other.read_text())
        if stated["architecture"] == found[0].arch:
            _write(
                other, stated | {"conditions": [r for r in stated["conditions"] if r["claim"] not in anew]}
            )
    typer.echo(f"written to {out}")


def _write(path: Path, stated: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(stated, indent=1) + "\n")


def _rows(pilot: Results) -> list[dict[str, Any]]:
    """One row for each condition with a smallest effect of interest that the pilot measured."""
    return [
        {"claim": claim, "condition": name, **_powers(outcome, _times(pilot, claim))}
        for claim, verdict in pilot.claims.items()
        for name, outcome in verdict.conditions.items()
        if outcome.smallest is not None and outcome.interval is not None
    ]


def _times(pilot: Results, claim: str) -> float:
    """How many times as many items as the pilot the registry plans for a claim."""
    entry = registry.load().architecture(pilot.arch)
    name = SHARE_OF.get(claim, SHARE[pilot.notebook])
    chapter = defaults(read_notebook(pilot.notebook, ROOT), pilot.notebook)
    planned = {**chapter, **entry.parameters.get(pilot.notebook, {})}
    if name not in pilot.params:
        raise ValueError(f"the pilot of {pilot.notebook} has no parameter '{name}': run it anew")
    return float(planned[name]) / float(str(pilot.params[name]))


def _powers(outcome: Outcome, times: float) -> dict[str, Any]:
    assert outcome.interval is not None
    assert outcome.smallest is not None
    n, level, least = outcome.interval.n, claim_rules.level(), outcome.smallest
    half = (outcome.interval.high - outcome.interval.low) / 2
    sd = half * math.sqrt(n) / float(t.ppf((1 + level) / 2, n - 1))
    planned = round(n * times)
    return {
        "sd": round(sd, 3),
        "pilot_n": n,
        "n": planned,
        "smallest": least,
        "power": round(power(sd, planned, least, level), 2),
        "power_twice": round(power(sd, planned, 2 * least, level), 2),
        "equivalence": round(equivalence_power(sd, planned, least, level), 2),
    }


if __name__ == "__main__":
    typer.run(run)
