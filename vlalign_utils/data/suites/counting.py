"""Suite `counting`: how many things there are, and how two of them lie to each other."""

from vlalign_utils.data.items import Suite
from vlalign_utils.data.language import ask_scene
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="counting",
    mirrors="CV-Bench",
    asks="how many things, or of one size; whether one is left of, right of, above or below another",
    metric="answer",
    vision_centric=True,
    # A single thing has no relation, and is counted instead.
    make=about(
        "scenes",
        lambda scene, language, rng: ask_scene(scene, language, rng, ("count", "relation", "relation")),
    ),
)
