"""Suite `charts`: bars of months, compared."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.month_charts import MONTHS, month_charts
from vlalign_utils.data.things.suites.about import YES_NO, Asked, illustrated
from vlalign_utils.data.things.written_questions import ask_extreme, ask_higher


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask which month has the highest or lowest bar, and whether one bar is higher than another, in turn.

    Chance is that of who reads the months and not the bars.
    """
    for i, chart in enumerate(month_charts(n, int(rng.integers(2**31)), split)):
        if i % 2:
            yield Asked(chart, ask_higher(chart, rng), YES_NO, guess=1 / 2, group="yes or no")
        else:
            months = tuple(MONTHS[month] for month in chart.months)
            question = ask_extreme(chart, rng)
            labels = tuple(month for month in chart.months if MONTHS[month] == question.answer)
            yield Asked(chart, question, months, guess=1 / len(months), group="which month", accepted=labels)


SUITE = Suite(
    name="charts",
    mirrors="ChartQA",
    asks="which month has the highest or lowest bar, or whether one bar is higher than another",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
)
