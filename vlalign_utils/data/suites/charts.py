"""Suite `charts`: bars, compared and read."""

from vlalign_utils.data.charts import ask_chart
from vlalign_utils.data.items import Suite
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="charts",
    mirrors="ChartQA",
    asks="which bar is highest or lowest, or how high one is",
    metric="answer",
    vision_centric=True,
    make=about("charts", ask_chart),
)
