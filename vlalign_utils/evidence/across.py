"""Across architectures, in words and short tables: what agrees, and how far seeds of one recipe lie apart."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vlalign_utils.evidence.claim_rules import Verdict
from vlalign_utils.evidence.findings import counted, joined, sentence

LIKE = "architecture"


def verdicts(by_architecture: Mapping[str, Mapping[str, Verdict]]) -> str:
    """A sentence on how many claims get one and the same verdict wherever they apply."""
    words: dict[str, list[str]] = {}
    for judged in by_architecture.values():
        for claim, verdict in judged.items():
            if verdict.word != "not applicable":
                words.setdefault(claim, []).append(verdict.word)
    several = {claim: found for claim, found in words.items() if len(found) > 1}
    if not several:
        return sentence(f"no claim was judged on two {LIKE}s, so that verdicts cannot be compared")
    one = [
        f"{claim} ({found[0]} on {len(found)})" for claim, found in several.items() if len(set(found)) == 1
    ]
    told = f": {joined(one)}" if one else ""
    return sentence(
        f"of {counted(len(several), 'claim')} judged on two {LIKE}s or more, "
        f"{len(one) or 'none'} got one verdict on all of them{told}"
    )


def peaks(table: pd.DataFrame) -> str:
    """A sentence on where the curves are highest, with the range over architectures.

    `table` has the columns view and "depth of the peak", a row per curve. Raises ValueError without rows.
    """
    if table.empty:
        raise ValueError("there is no curve whose peak could be told")
    parts = [
        f"“{view}” at {_span(depths)} ({counted(len(depths), LIKE)})"
        for view, depths in table.groupby("view", sort=False)["depth of the peak"]
    ]
    return sentence(f"the curves are highest at these relative depths: {joined(parts)}")


def orders(ranks: pd.DataFrame, names: Sequence[str]) -> str:
    """A sentence on how many pairs of views correlate alike everywhere, with the surest pair of either sign.

    `ranks` has the columns view, "other view" and one correlation per name, NaN where it has none.
    """
    spans = {
        f"“{row['view']}” with “{row['other view']}”": row[list(names)].astype(float).dropna()
        for _, row in ranks.iterrows()
    }
    several = {pair: found for pair, found in spans.items() if len(found) > 1}
    alike = {pair: found for pair, found in several.items() if (found > 0).all()}
    opposite = {pair: found for pair, found in several.items() if (found < 0).all()}
    return sentence(
        f"of {counted(len(ranks), 'pair')} of views, {_surest(alike)} correlate positively over depth in "
        f"every {LIKE} that has both, and {_surest(opposite)} negatively"
    )


def _surest(spans: "dict[str, pd.Series[float]]") -> str:
    """How many there are, and that one whose weakest correlation is strongest."""
    if not spans:
        return "none"
    pair = max(spans, key=lambda name: float(spans[name].abs().min()))
    return f"{len(spans)} (the surest: {pair}, {_span(spans[pair])})"


def _span(values: "pd.Series[float] | np.ndarray") -> str:
    low, high = float(np.min(values)), float(np.max(values))
    shown = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    return shown.replace("-", "−")


def seeds(table: pd.DataFrame) -> str:
    """A sentence on how many numbers lie further apart between seeds than one model's interval is wide.

    `table` has the columns lowest, highest and "half-width of one", a row per number.
    """
    if table.empty:
        return sentence("none of these recipes was trained from more than one seed")
    apart = int(_apart(table).sum())
    lie = "lies" if apart == 1 else "lie"
    return sentence(
        f"of {counted(len(table), 'number')} that all seeds of a recipe published, {apart} {lie} further "
        "apart, from the lowest seed to the highest, than one model's 95 % interval is wide"
    )


def seeds_by_chapter(table: pd.DataFrame) -> pd.DataFrame:
    """Counts of such numbers by recipe and chapter, as rows to show."""
    counts = table.assign(apart=_apart(table)).groupby(["recipe", "chapter"], sort=False)["apart"]
    summary = counts.agg(["size", "sum"]).reset_index()
    return summary.set_axis(["recipe", "chapter", "numbers", "further apart than one interval"], axis=1)


def _apart(table: pd.DataFrame) -> "pd.Series[bool]":
    return table["highest"] - table["lowest"] > 2 * table["half-width of one"]
