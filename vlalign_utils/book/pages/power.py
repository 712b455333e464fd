"""What the planned numbers of items could decide, as it was stated before: a sentence for each claim."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = "power*.json"  # in the book's folder: one for each time that a power was stated


def about(claim: str, titles: Mapping[str, str], root: Path) -> str:
    """A claim's power, with the date and the commit of its rules; empty where none was stated.

    `titles` are those of the architectures by name.
    """
    said = []
    for path in sorted((root / "book").glob(FILES)):
        stated: dict[str, Any] = json.loads(path.read_text())
        rows = [row for row in stated["conditions"] if row["claim"] == claim]
        model = titles.get(stated["architecture"], stated["architecture"])
        head = f"Stated on {stated['date']}, after the rules (commit {stated['rules'][:7]}), on {model}"
        origin = stated.get("from", "from other items")
        said += [f"{head}, {origin}: {'; '.join(map(_powers, rows))}."] if rows else []
    return " ".join(said)


def _powers(row: dict[str, Any]) -> str:
    least = row["smallest"]
    if "error" in row:  # of a mean over seeds and items
        spread = f"standard error {row['error']:g} expected"
    else:
        spread = f"standard deviation {row['sd']:g} in a pilot of {row['pilot_n']} items"
    said = (
        f"{row['condition']}, {spread}: with N = {row['n']} an effect of {least:g} is found with a "
        f"probability of {row['power']:.2f}, one of {2 * least:g} with {row['power_twice']:.2f}"
    )
    if "equivalence" not in row:  # no smallest effect of interest: no verdict of that word
        return said
    return f"{said}; where there is none, the verdict is equivalent with {row['equivalence']:.2f}"
