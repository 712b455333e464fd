"""Markdown written by the build. Text from data, models and registries is escaped, so it cannot be markup."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Protocol, runtime_checkable

HYPHEN = re.compile(r"(?<![\w.])-(?=\d)")
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-!|$~^:@%])")


@runtime_checkable
class Interval(Protocol):
    """A number with its 95 % interval."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """Lower end of its interval."""

    @property
    def high(self) -> float:
        """Upper end of its interval."""


def text(value: object) -> str:
    """One line of plain text, with everything that Markdown, MyST or HTML would read as markup escaped."""
    escaped = SPECIAL.sub(r"\\\1", escape(" ".join(str(value).split()), quote=False))
    return re.sub(r"^(\d+)\.(?=\s|$)", r"\1\\.", escaped)  # else the first item of a list


def code(value: object) -> str:
    """A code span of one line, whatever backticks the text holds; not for a table, where bars divide."""
    plain = " ".join(str(value).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    room = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{room}{plain}{room}{fence}"


def number(value: float) -> str:
    """At most three decimals, thousands apart, and a true minus."""
    shown = f"{value:,.3f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"
    return shown.replace("-", "−").replace(",", "\N{NARROW NO-BREAK SPACE}")


def true_minus(written: str) -> str:
    """The same with a true minus before numbers that a hyphen makes negative.

    >>> true_minus("a-b is -0.5 [-0.6, 0]")
    'a-b is −0.5 [−0.6, 0]'
    """
    return HYPHEN.sub("−", written)


def interval(estimate: Interval, digits: int = 2) -> str:
    """`0.91 [0.89, 0.93]`, ready for a cell and never broken into two lines."""
    # z: no minus is left before what rounds to zero
    value, low, high = (f"{x:z.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    shown = f"{value} \\[{low}, {high}\\]"
    return shown.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")


def table(columns: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already. `align` holds l or r for each column: "lrr"."""
    lines = [_row(columns), _row([{"l": ":---", "r": "---:"}[side] for side in align])]
    lines += [_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
