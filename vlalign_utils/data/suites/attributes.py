"""Suite `attributes`: colour, form, size or place of one thing."""

from vlalign_utils.data.documents import LOOKUPS
from vlalign_utils.data.items import Suite
from vlalign_utils.data.language import ask_scene
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="attributes",
    mirrors="GQA",
    asks="colour, form, size or place of one thing",
    metric="answer",
    vision_centric=True,
    make=about("scenes", lambda scene, language, rng: ask_scene(scene, language, rng, LOOKUPS)),
)
