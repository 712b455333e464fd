"""Suite `existence`: yes or no, balanced; things that are not there are made of what is."""

from vlalign_utils.data.items import Suite
from vlalign_utils.data.language import ask_exists
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="existence",
    mirrors="POPE",
    asks="whether a form of a colour is there",
    metric="answer",
    vision_centric=True,
    make=about("scenes", ask_exists),
)
