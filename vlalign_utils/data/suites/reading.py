"""Suite `reading`: the word written in the picture."""

from vlalign_utils.data.items import Suite
from vlalign_utils.data.signs import ask_sign
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="reading",
    mirrors="TextVQA",
    asks="which word is written",
    metric="answer",
    vision_centric=True,
    make=about("signs", ask_sign),
)
