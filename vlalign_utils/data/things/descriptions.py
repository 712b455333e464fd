"""Descriptions of scenes of things in several wordings: what a description is compared with."""

from vlalign_utils.data.things.relations import WORDS
from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.words import caption, listed, sentence, verb, with_article

ORDERS = {"row": "from left to right", "column": "from top to bottom"}


def wordings(scene: Scene) -> tuple[str, ...]:
    """True descriptions of the scene in one sentence each, its caption first.

    >>> import numpy as np
    >>> from vlalign_utils.data.things.scenes import place
    >>> from vlalign_utils.data.things.table import by_name
    >>> pair = [by_name()["rat"], by_name()["guitar"]]
    >>> wordings(place(np.random.default_rng(0), "test", pair, "row"))[2:]
    ('There is a rat to the left of a guitar.', 'A rat and a guitar from left to right.')
    """
    said = caption(scene)
    inner = said[:-1] if said[1].isupper() else said[0].lower() + said[1:-1]
    found = [said, sentence(f"the image shows {inner}")]
    named = [with_article(thing) for thing in scene.things]
    first = verb(scene.things[0])
    if scene.arrangement not in ORDERS or len(named) == 1:
        return (*found, sentence(f"there {first} {inner}"))
    if len(named) == 2:
        found.append(sentence(f"there {first} {named[0]} {WORDS[scene.arrangement][0]} {named[1]}"))
    return (*found, sentence(f"{listed(named)} {ORDERS[scene.arrangement]}"))
