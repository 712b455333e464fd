"""Results of a notebook: the JSON beside it, its schema, and the Report that writes it."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, SupportsFloat, SupportsInt

import numpy as np
import pandas as pd
from pydantic import Field, FiniteFloat, JsonValue, ValidationError, model_validator

from vlalign_utils.evidence import claim_rules, claims
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.evidence.strict import Strict
from vlalign_utils.paths import ROOT, results_root, write_atomic

PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")
Cell = str | bool | int | FiniteFloat | None


class ResultsError(ValueError):
    """A result that is missing, malformed, or not a number."""


class Estimate(Strict):
    """A number with its interval [low, high], the N it rests on, and the chance level if it has one."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    n: int = Field(ge=1)
    chance: FiniteFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Estimate":
        if self.low > self.high:
            raise ValueError(f"the interval is empty: low {self.low} is above high {self.high}")
        return self


class Table(Strict):
    """A tidy table: one list per row, in the order of `columns`."""

    columns: list[str]
    rows: list[list[Cell]]

    @model_validator(mode="after")
    def _rectangular(self) -> "Table":
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(self.columns)} columns")
        return self


class Results(Strict):
    """Schema of `book/results/<arch>/<notebook>.json`.

    `params`, `input_hash`, `notebook_digest` and `content_digest` are filled in when the run is published:
    they are empty in the file that a notebook writes when it is run by hand. Between reruns only `timing`
    (seconds), and with it `content_digest`, may differ.
    """

    schema_version: Literal[1] = 1
    notebook: str
    arch: str
    params: dict[str, JsonValue] = Field(default_factory=dict)
    input_hash: str = ""
    notebook_digest: str = ""
    content_digest: str = ""  # of all other fields: every number, every parameter, every verdict
    quick: bool = False
    versions: dict[str, str] = Field(default_factory=dict)
    values: dict[str, Estimate] = Field(default_factory=dict)
    tables: dict[str, Table] = Field(default_factory=dict)
    claims: dict[str, claim_rules.Verdict] = Field(default_factory=dict)
    findings: list[str] = Field(default_factory=list)
    timing: dict[str, FiniteFloat] = Field(default_factory=dict)

    def frame(self, name: str) -> pd.DataFrame:
        """One table as a DataFrame. Raises ResultsError naming the tables there are."""
        if name not in self.tables:
            have = ", ".join(self.tables) or "none"
            raise ResultsError(f"{self.arch}/{self.notebook} has no table '{name}'; it has: {have}")
        return pd.DataFrame(self.tables[name].rows, columns=self.tables[name].columns)

    def measured(self) -> dict[str, JsonValue]:
        """Everything that a rerun must repeat: not the seconds, nor the digest that covers them."""
        return self.model_dump(mode="json", exclude={"timing", "content_digest"})

    def sealed(self) -> "Results":
        """A copy with the digest of its content, by which `read` finds a later change."""
        return self.model_copy(update={"content_digest": self._digest()})

    @property
    def intact(self) -> bool:
        """Check whether the digest is there, and is that of the content."""
        return self.content_digest == self._digest()

    def _digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"content_digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def dumps(self) -> str:
        """The file's text: indented, one table row per line."""
        return tidy_json(self.model_dump(mode="json"))


def tidy_json(data: JsonValue) -> str:
    """JSON to read and to keep in git: indented, with every list of plain values on a line of its own."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda m: f"[{_joined(m[1])}]", text) + "\n"


def _joined(lines: str) -> str:
    return re.sub(r"\n\s*", " ", lines)


def read(path: Path) -> Results:
    """One results file, checked against the schema and, once published, against its digest.

    Raises ResultsError naming the file and, where the schema is not met, the field.
    """
    try:
        results = Results.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path} does not exist: its notebook has not been run") from None
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ResultsError(f"{path} is not a valid results file: it is not text in UTF-8") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ResultsError(f"{path} is not a valid results file: {field}: {first['msg']}") from None
    if results.content_digest and not results.intact:
        raise ResultsError(f"{path} was changed after it was published; {_again(path)}")
    return results


def _again(path: Path) -> str:
    return f"run: make run ARCH={path.parent.name} NB={path.stem}"


def load(arch: str, notebook: str) -> Results:
    """The published results of one notebook of one architecture ("comparison" for 90_comparison).

    Raises ResultsError for what is missing, malformed, changed since, or never was published.
    """
    path = results_root() / arch / f"{notebook}.json"
    results = read(path)
    if not results.content_digest:
        raise ResultsError(f"{path} has no digest: it was not published by a run; {_again(path)}")
    return results


def _number(value: SupportsFloat, where: str) -> float:
    """A float at 6 significant digits, so that a rerun writes the same bytes."""
    number = float(value)
    if not math.isfinite(number):
        raise ResultsError(f"{where} is {number}; a published number must be finite")
    return float(f"{number:.6g}") + 0.0  # + 0.0 turns -0.0 into 0.0


def _cell(value: Any, where: str) -> Cell:
    """A JSON scalar for one cell of a table."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if not isinstance(value, float):
        raise ResultsError(f"{where} must be a number, a string or a bool, not {type(value).__name__}")
    return _number(value, where)


class Report:
    """Collector of a notebook's results; `save()` in the last cell writes them.

    `notebook` and `arch` name what was run on what, such as "02_probing" and "llava"; `params` are the
    parameters of the run. `out_dir` is the folder to write to; empty means a scratch folder that nothing
    reads. Every number and table has a name of its own.

    Raises ResultsError for a name used twice, and for a number that is NaN, infinite or outside its interval.

    >>> import tempfile
    >>> from vlalign_utils import Interval, Report
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = Report("02_probing", "llava", {"seed": 0}, folder)
    ...     report.value("accuracy", *Interval(0.9, 0.86, 0.93, n=300), chance=0.25)
    ...     report.save().name
    '02_probing.json'
    """

    def __init__(
        self, notebook: str, arch: str, params: dict[str, JsonValue] | None = None, out_dir: str = ""
    ):
        """Start an empty report; `params` are kept for a reader of the scratch file."""
        self.path = Path(out_dir or ROOT / ".cache" / "scratch" / arch) / f"{notebook}.json"
        self.results = Results(
            notebook=notebook,
            arch=arch,
            params=dict(params or {}),
            quick=bool((params or {}).get("quick", False)),
            versions={name: version(name) for name in PACKAGES},
        )

    def value(
        self,
        name: str,
        value: SupportsFloat,
        low: SupportsFloat,
        high: SupportsFloat,
        n: SupportsInt,
        chance: SupportsFloat | None = None,
    ) -> None:
        """Add one estimate. Raises ResultsError for NaN, an empty interval, n < 1, or a name used twice."""
        self._unused(name, self.results.values)
        numbers = {"value": value, "low": low, "high": high}
        fields = {key: _number(number, f"'{name}' ({key})") for key, number in numbers.items()}
        reference = None if chance is None else _number(chance, f"'{name}' (chance)")
        try:
            self.results.values[name] = Estimate(**fields, n=int(n), chance=reference)
        except ValidationError as error:
            raise ResultsError(f"'{name}': {error.errors()[0]['msg']}") from None

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Add one tidy table (its index is dropped). Raises ResultsError naming a cell that is not finite."""
        self._unused(name, self.results.tables)
        columns = [str(column) for column in frame.columns]
        rows = [
            [
                _cell(cell, f"table '{name}', row {number}, column '{column}'")
                for cell, column in zip(row, columns, strict=True)
            ]
            for number, row in enumerate(frame.itertuples(index=False, name=None))
        ]
        self.results.tables[name] = Table(columns=columns, rows=rows)

    def claim(
        self,
        name: str,
        intervals: Mapping[str, Interval | None],
        seeds: int = 1,
        not_applicable: str | None = None,
    ) -> claim_rules.Verdict:
        """Judge one claim of claims.yml by the intervals of its conditions, add the verdict, and return it.

        None stands for a condition that could not be measured; `not_applicable` is a reason, in a clause, why
        the claim cannot be asked of this model. Raises ClaimError for an unknown claim or
        condition, a missing one, or a claim of another chapter; ResultsError for NaN or a claim judged twice.
        """
        known = claim_rules.claim(name)
        if known.chapter != self.results.notebook:
            raise claim_rules.ClaimError(
                f"claim '{name}' is judged in {known.chapter}, by {claim_rules.FILE}"
            )
        self._unused(name, self.results.claims)
        stored: dict[str, Interval | None] = dict(intervals)
        for what, found in intervals.items():
            if found is not None:
                value, low, high = (_number(x, f"claim '{name}', '{what}'") for x in found[:3])
                stored[what] = Interval(value, low, high, found.n)
        verdict = claims.judge(known, stored, seeds, not_applicable)
        self.results.claims[name] = verdict
        return verdict

    def finding(self, sentence: str) -> None:
        """Add one sentence of what was found, for the top of the page; two to four make a chapter's.

        Raises ResultsError for one that is not a single line ending in a full stop, or is added twice.
        """
        if len(sentence.splitlines()) != 1 or not sentence.endswith("."):
            raise ResultsError(f"a finding must be one line that ends with a full stop, not {sentence!r}")
        if sentence in self.results.findings:
            raise ResultsError(f"the finding {sentence!r} is reported twice in {self.results.notebook}")
        self.results.findings.append(sentence)

    def shown(self) -> pd.DataFrame:
        """The values added so far, as rows to show: three decimals, which are the same on every machine."""
        rows = [
            (name, str(Interval(e.value, e.low, e.high, e.n)), e.n, e.chance)
            for name, e in self.results.values.items()
        ]
        frame = pd.DataFrame(rows, columns=["measured", "value and 95 % interval", "N", "chance"])
        return frame.assign(chance=[f"{x:.3f}" if pd.notna(x) else "" for x in frame.chance])

    def timing(self, name: str, seconds: SupportsFloat) -> None:
        """Add one duration in seconds."""
        self._unused(name, self.results.timing)
        self.results.timing[name] = _number(seconds, f"timing '{name}'")

    def save(self) -> Path:
        """Write the JSON, whole or not at all, and return its path."""
        write_atomic(self.path, self.results.dumps())
        return self.path

    def _unused(self, name: str, taken: dict[str, Any]) -> None:
        if name in taken:
            raise ResultsError(
                f"'{name}' is reported twice in {self.results.notebook}; give each its own name"
            )
