"""The page of claims: each with its statistic and rule, and all that was measured for it."""

from pathlib import Path

import pandas as pd

from vlalign_utils.book.pages import downloads, power, scale, verdicts
from vlalign_utils.book.pages.markdown import table, text, true_minus
from vlalign_utils.book.pages.verdicts import Verdicts
from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.claim_rules import Claim, Condition, Measured, Outcome, Verdict
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture, Registry

SOURCES = {"paper": "The paper", "follow-up": "A consequence of the paper"}


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `claims.md`, and the outcome of every condition as a CSV file."""
    known = claim_rules.load(root / claim_rules.FILE)
    archs = list(entries.architectures.values())
    found = verdicts.collect(known, entries, root)
    titles = {arch.name: arch.title for arch in archs}
    level = claim_rules.level(len(known))
    sides = sum(
        (region.above is not None) + (region.below is not None)
        for claim in known.values()
        for region in claim.conditions.values()
        if not region.guard
    )
    link = downloads.save(_all_conditions(found), folder, "claims conditions", "all of them as CSV")
    lines = [
        "# Claims",
        """A claim is a sentence with a statistic, and regions in which its intervals must lie. It is
*supported* when every interval lies inside its region, *contradicted* when one lies wholly outside,
*equivalent* when one lies nearer to the end of its region, on both sides, than the smallest effect of
interest, *undecided* otherwise, and *not applicable* where it cannot be asked of a model at all. A *guard*
says that the measurement works at all, such as better than shuffled pairs: unless every guard's interval lies
inside, the claim is undecided. So is one on training, when fewer seeds were run than it needs. Beside each
interval stands how it lies to its region: *inside* it, *outside* it, *across* its end, or *equal*, which is
within the smallest effect of interest of that end.""",
        f"""The level of every interval is {100 * level:.2f} %: 95 % corrected for {len(known)} claims
(Bonferroni). One side of an interval misses the truth in {50 * (1 - level):.2f} % of repetitions, and {sides}
sides can make a verdict wrong: an architecture gets any false verdict in at most
{50 * sides * (1 - level):.1f} %.""",
        text(scale.about_all(entries, root)),
        f"Every condition of every verdict: {link}.",
    ]
    for name, claim in known.items():
        lines += _claim(claim, archs, found[name], power.about(name, titles, root))
    write_atomic(folder / "claims.md", "\n\n".join(lines) + "\n")


def _claim(claim: Claim, archs: list[Architecture], found: Verdicts, powered: str) -> list[str]:
    cites = " {cite}`" + ",".join(claim.references) + "`" if claim.references else ""
    works = f" ({text(claim.works)})" if claim.works else ""
    rows = [["verdict", *(verdicts.marked(claim, arch, v) for arch, v in found.items())]]
    rows += [
        [
            f"{'guard: ' * region.guard}{text(name)}; *{text(region.region())}*",
            *("" if v is None else _full(v.conditions[name], v.decided_by == name) for v in found.values()),
        ]
        for name, region in claim.conditions.items()
    ]
    lines = [
        f"(claim-{claim.id})=",
        f"## {text(claim.id)}",
        f"**{text(claim.says)}**",
        f"{SOURCES[claim.source]}{cites}{works}.",
        f"Statistic\n: {text(claim.statistic)}",
        f"$$\n{claim.formula}\n$$",
        f"Null\n: {text(claim.against)}",
        f"Depth\n: {text(claim.depth)}",
        f"Needs\n: at least {claim.seeds} seeds" if claim.seeds > 1 else "",
        f"Power\n: {text(powered)}" if powered else "",
        ":::{div} verdicts",
        table(("condition", *(text(arch.title) for arch in archs)), "l" * (1 + len(archs)), rows),
        ":::",
    ]
    seeds = [
        f"{arch.title}: {true_minus(v.decided_by)}" for arch in archs if (v := found[arch.name]) and _few(v)
    ]
    silent = [_silent(claim, arch) for arch in archs if found[arch.name] is None]
    notes = "; ".join(text(note) for note in seeds + silent)
    return [line for line in [*lines, f"{notes}." if notes else ""] if line]


def _few(verdict: Verdict) -> bool:
    return verdict.decided_by not in verdict.conditions


def _silent(claim: Claim, arch: Architecture) -> str:
    why = "gives no verdict" if claim.chapter in arch.notebooks else "was not run on this model"
    return f"{arch.title}: the chapter {claim.chapter} {why}"


def _full(outcome: Outcome, decides: bool) -> str:
    if outcome.interval is None:
        return "not measurable"
    n = f"N = {outcome.interval.n}".replace(" ", "\N{NO-BREAK SPACE}")
    shown = f"{verdicts.measured(outcome)}, {outcome.lies}, {n}"
    return f"**{shown}**" if decides else shown


def _all_conditions(found: dict[str, Verdicts]) -> pd.DataFrame:
    """One row per claim, architecture and condition."""
    rows = [
        {"claim": name, "architecture": arch, "condition": what}
        | outcome.model_dump(exclude={"interval"})
        | (outcome.interval.model_dump() if outcome.interval else {})
        for name, by_arch in found.items()
        for arch, verdict in by_arch.items()
        for what, outcome in (verdict.conditions if verdict else {}).items()
    ]
    columns = ["claim", "architecture", "condition", *Condition.model_fields, "lies", *Measured.model_fields]
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64"})
