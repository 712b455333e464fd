"""Suite `digits`: real handwriting, of items that no training picture shows."""

from vlalign_utils.data.items import Suite
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="digits",
    mirrors="handwriting in the wild",
    asks="which handwritten digit is shown alone",
    metric="answer",
    vision_centric=True,
    make=about("digits", KINDS["digits"].ask),
)
