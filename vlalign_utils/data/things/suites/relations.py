"""Suite `relations`: what is left of, right of, above or below a thing, and whether it is."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split, Suite
from vlalign_utils.data.things.questions import ask_beside, ask_related
from vlalign_utils.data.things.suites.about import YES_NO, Asked, illustrated, lined_up
from vlalign_utils.data.things.suites.naming import chance, every_name
from vlalign_utils.data.things.words import accepted_names, capital, with_article


def ask(n: int, rng: np.random.Generator, split: Split) -> Iterator[Asked]:
    """Ask for the name of what is beside a thing, and for yes or no, in turn."""
    for i in range(n):
        scene = lined_up(rng, split)
        if i % 2:
            yield Asked(scene, ask_related(scene, rng), YES_NO, guess=1 / 2, group="yes or no")
        else:
            question = ask_beside(scene, rng)
            thing = next(t for t in scene.things if capital(with_article(t)) == question.answer)
            yield Asked(
                scene,
                question,
                choices=every_name(),
                guess=chance(),
                group="which thing",
                accepted=accepted_names(thing),
            )


SUITE = Suite(
    name="relations",
    mirrors="What'sUp",
    asks="what is left of, right of, above or below a thing, or whether another one is",
    metric="answer",
    vision_centric=True,
    make=illustrated(ask),
    groups=("which thing", "yes or no"),
)
