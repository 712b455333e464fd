"""The verdicts of all chapters, and the front page's table of them: claims x architectures."""

from collections import Counter
from pathlib import Path

import pandas as pd
from myst_parser.mdit_to_docutils.base import default_slugify

from vlalign_utils.book import toc
from vlalign_utils.book.pages import downloads
from vlalign_utils.book.pages.markdown import interval, table, text, true_minus
from vlalign_utils.evidence import claim_rules, claims
from vlalign_utils.evidence.claim_rules import Claim, Measured, Outcome, Verdict
from vlalign_utils.evidence.results import ResultsError, read
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture, Registry

NOT_RUN = "not run"
WORDS = (*claim_rules.WORDS, NOT_RUN)
Verdicts = dict[str, Verdict | None]  # by architecture


def collect(known: dict[str, Claim], entries: Registry, root: Path) -> dict[str, Verdicts]:
    """Of each claim, what every architecture's chapter found; None where it does not run or judges nothing.

    Raises ResultsError for a verdict that the present rule would not give.
    """
    archs = entries.architectures.values()
    return {name: {arch.name: _verdict(claim, arch, root) for arch in archs} for name, claim in known.items()}


def _verdict(claim: Claim, arch: Architecture, root: Path) -> Verdict | None:
    if claim.chapter not in arch.notebooks:
        return None
    path = root / f"{toc.chapter(arch.name, claim.chapter)}.json"
    stored = read(path).claims.get(claim.id)
    if stored is None:
        return None
    reason = stored.decided_by if stored.word == "not applicable" else None
    if claims.judge(claim, stored.intervals(), stored.seeds, reason) != stored:
        command = f"make run ARCH={arch.name} NB={claim.chapter}"
        raise ResultsError(f"{path}: '{claim.id}' was judged by another {claim_rules.FILE}; run: {command}")
    return stored


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `verdicts.md`, which the front page includes, and the same as a CSV file."""
    known = claim_rules.load(root / claim_rules.FILE)
    archs = [entries.architecture(name) for name in entries.originals()]
    found = collect(known, entries, root)
    counts = Counter(word(by_arch[arch.name]) for by_arch in found.values() for arch in archs)
    rows = [
        [
            f"[{text(name)}](#claim-{name}): {text(claim.says)}",
            *(_cell(claim, arch.name, found[name], entries) for arch in archs),
        ]
        for name, claim in known.items()
    ]
    told = ", ".join(f"{counts[each]} {each}" for each in WORDS)
    link = downloads.save(_summary(found), folder, "claims", "this table as CSV")
    lines = [
        f"Of {counts.total()} cells: {told}. A recipe counts once, as its first seed. The rule is the "
        "same for all [claims](/_generated/claims.md). In a cell: the word, then what decided it, with its "
        "interval.",
        ":::{div} verdicts",
        table(("claim", *(text(arch.title) for arch in archs)), "l" * (1 + len(archs)), rows),
        ":::",
        f"Download {link}.",
    ]
    write_atomic(folder / "verdicts.md", "\n\n".join(lines) + "\n")


def word(verdict: Verdict | None) -> str:
    """The verdict in a word."""
    return NOT_RUN if verdict is None else verdict.word


def marked(claim: Claim, arch: str, verdict: Verdict | None) -> str:
    """The word, set apart by its class, which links to the figure that the verdict rests on."""
    shown = word(verdict)
    figure = f"/{toc.chapter(arch, claim.chapter)}.ipynb#{default_slugify(claim.heading)}"
    linked = shown if verdict is None else f"[{shown}]({figure})"
    return f"[{linked}]{{.verdict .{shown.replace(' ', '-')}}}"


def _cell(claim: Claim, arch: str, found: Verdicts, entries: Registry) -> str:
    """The word and the interval that decided it, with its condition's name where there are several."""
    verdict = found[arch]
    if verdict is None:
        return marked(claim, arch, verdict)
    outcome = verdict.conditions.get(verdict.decided_by)
    why = [] if outcome and len(claim.conditions) == 1 else [text(true_minus(verdict.decided_by))]
    why += [measured(outcome)] if outcome else []
    return f"{marked(claim, arch, verdict)} {': '.join(why)}{seeds(found, arch, entries)}"


def seeds(found: Verdicts, arch: str, entries: Registry) -> str:
    """In how many of a recipe's seeds the verdict is that of the first; nothing where there is one."""
    others = [found[entry.name] for entry in entries.architectures.values() if entry.repeats == arch]
    judged = [word(verdict) for verdict in others if verdict is not None]
    if not judged:
        return ""
    return f"; so in {1 + judged.count(word(found[arch]))} of {1 + len(judged)} seeds"


def measured(outcome: Outcome) -> str:
    """The interval of a condition, for a narrow cell: it may break before its bracket."""
    if outcome.interval is None:
        return "not measurable"
    return interval(outcome.interval, 3).replace("\N{NO-BREAK SPACE}\\[", " \\[")


def _summary(found: dict[str, Verdicts]) -> pd.DataFrame:
    """One row per claim and architecture, with the interval that decided it."""
    rows = []
    for name, by_arch in found.items():
        for arch, verdict in by_arch.items():
            row: dict[str, object] = {"claim": name, "architecture": arch, "verdict": word(verdict)}
            if verdict is not None:
                row |= {"decided_by": verdict.decided_by, "level": verdict.level, "seeds": verdict.seeds}
                outcome = verdict.conditions.get(verdict.decided_by)
                row |= outcome.interval.model_dump() if outcome and outcome.interval else {}
            rows.append(row)
    decided = ["verdict", "decided_by", *Measured.model_fields, "level", "seeds"]
    columns = ["claim", "architecture", *decided]
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64", "seeds": "Int64"})
