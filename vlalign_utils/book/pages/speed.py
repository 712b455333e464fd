"""The page of benchmarks: every committed run of `make bench`, by machine and size."""

import json
from pathlib import Path
from typing import Any

from vlalign_utils.book.pages.markdown import number, table, text
from vlalign_utils.evidence.results import ResultsError
from vlalign_utils.paths import write_atomic

FOLDER = "benchmarks/results"
EXTRA = {"share of FLOPs": "share of the FLOPs", "difference": "difference"}
SHARES = {"share": "share", "share, with weights": "with the model's weights"}


def write(folder: Path, root: Path) -> None:
    """Write `benchmarks.md` into `folder`. Raises ResultsError naming a file that is no benchmark record."""
    planned: dict[str, Any] = {}
    lines = [
        "# Speed and memory",
        """From `make bench`. The ways in a table take turns in one run, and before anything is timed their
results are compared: every way's with the usual one's, and in fine-tunes the losses from a recorded prefix
with those of the ordinary loop. *Times faster* is the usual way's time over this way's, a geometric mean over
rounds with a 95 % bootstrap interval; below 1 is slower. *Share of the time* is one over it. *Seconds* are
medians. *Difference* is the largest one of any number, relative to the largest number.""",
        """Fine-tunes: *share of the FLOPs* is what arithmetic alone would leave of the usual way's. Left out
of every way's time are the files of weights to go back to and the count of memory, which `tune` makes once.
The project aims for at most 75 % of full tuning's time in one epoch, 40 % over three with the recording, and
60 % of its memory with the model's weights; the tables show for which bands that is reached. The lower a band
begins, the more layers gradient has to pass, whatever is recorded. In a single epoch recording costs about
what it saves: it pays from the second epoch on.""",
    ]
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            for size, run in record["sizes"].items():
                lines += _run(size, run)
            planned = record.get("plans", planned)  # computed, so the same on every machine
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path} is not a benchmark record ({error!r}); run: make bench") from None
    lines += _plans(planned) if planned else []
    write_atomic(folder / "benchmarks.md", "\n\n".join(lines) + "\n")


def _run(size: str, run: dict[str, Any]) -> list[str]:
    lines = [
        f"## {text(run['device'])}: {text(size)}",
        f"{text(run['model'])}; torch {text(run['torch'])}, transformers {text(run['transformers'])}.",
    ]
    for task in dict.fromkeys(row["task"] for row in run["rows"]):
        rows = [row for row in run["rows"] if row["task"] == task]
        columns = ["way", "times faster", "share of the time", "seconds"]
        columns += [name for key, name in EXTRA.items() if any(key in row for row in rows)]
        cells = [
            [
                text(row["way"]),
                f"{number(row['times faster'])} \\[{number(row['low'])}, {number(row['high'])}\\]",
                _percent(1 / row["times faster"]),
                f"{row['seconds']:g}",
                *(_extra(key, row) for key, name in EXTRA.items() if name in columns),
            ]
            for row in rows
        ]
        usual = f"{rows[0]['against']} ({rows[0]['seconds, usual']:g} s; N = {rows[0]['rounds']} rounds)"
        lines += [
            f"### {text(task[0].upper() + task[1:])}",
            f"Against: {text(usual)}.",
            table(columns, "l" + "r" * (len(columns) - 1), cells),
        ]
    shares = [key for key in SHARES if any(key in row for row in run["memory"])]
    taken = [
        [text(row["way"]), number(row["peak MiB"]), *(_percent(row.get(key)) for key in shares)]
        for row in run["memory"]
    ]
    columns = ["way", "MiB", *(SHARES[key] for key in shares)]
    about = "Above what is held before." + (
        " A share is of full tuning's, of the same model." if shares else ""
    )
    return [*lines, "### Peak memory", about, table(columns, "lr" + "r" * len(shares), taken)]


def _plans(planned: dict[str, Any]) -> list[str]:
    columns = [text(name) for name in planned["rows"][0]]
    cells = [[text(v) if isinstance(v, str) else number(v) for v in row.values()] for row in planned["rows"]]
    return [
        "## What a fine-tune of a large model will hold",
        f"""GiB, computed by `plan` from a configuration before anything is loaded, not measured:
{text(planned["of"])}. How to ask it about a model of your own: [Rerun and validate](/book/reproduce.md).""",
        table(columns, "ll" + "r" * (len(columns) - 2), cells),
    ]


def _extra(key: str, row: dict[str, Any]) -> str:
    if key == "difference" and key in row:
        return f"{row[key]:.0e}".replace("0e+00", "0").replace("-", "−")
    return _percent(row.get(key))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %".replace(" ", "\N{NO-BREAK SPACE}")
