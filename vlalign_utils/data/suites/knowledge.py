"""Suite `knowledge`: facts that only text taught, asked about a picture."""

from vlalign_utils.data.documents import FACTS
from vlalign_utils.data.items import Suite
from vlalign_utils.data.language import ask_scene
from vlalign_utils.data.suites.about import about

SUITE = Suite(
    name="knowledge",
    mirrors="ScienceQA, MMMU",
    asks="a fact that only text taught, about a thing in the picture",
    metric="answer",
    vision_centric=False,
    make=about("scenes", lambda scene, language, rng: ask_scene(scene, language, rng, FACTS)),
)
