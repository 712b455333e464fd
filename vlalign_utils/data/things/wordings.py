"""What a scene of things shows, said in ways that share few words or none with its caption."""

from collections.abc import Callable
from functools import partial

from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.table import LANGUAGES, Thing
from vlalign_utils.data.things.words import (
    association,
    caption,
    caption_in,
    description,
    listed,
    nearest_kind,
    sentence,
)


def described(scene: Scene) -> str:
    """Say what each thing is, in a sentence each, without its name and without its place.

    >>> import numpy as np
    >>> from vlalign_utils.data.things.scenes import place
    >>> from vlalign_utils.data.things.table import by_name
    >>> scene = place(np.random.default_rng(0), "test", [by_name()["camel"], by_name()["purse"]], "row")
    >>> described(scene)[-50:], kinds(scene)
    ('esert regions. Pink pouch with a metal clasp for coins.', 'A mammal and a container.')
    """
    return _sentences(scene, description)


def associated(scene: Scene) -> str:
    """Say what each thing is a kind of and goes with, in a sentence each, without its name."""
    return _sentences(scene, association)


def kinds(scene: Scene) -> str:
    """Name the nearest hypernym of each thing in the place of the thing."""
    return sentence(listed([nearest_kind(thing) for thing in scene.things]))


def translated(scene: Scene, language: str) -> str:
    """Name the things in another language."""
    return sentence(caption_in(scene, language))


def _sentences(scene: Scene, say: Callable[[Thing], str]) -> str:
    return " ".join(sentence(say(thing)) for thing in dict.fromkeys(scene.things))


WORDINGS: dict[str, Callable[[Scene], str]] = {
    "en": caption,
    "described": described,
    "associated": associated,
    "kinds": kinds,
    **{language: partial(translated, language=language) for language in LANGUAGES},
}
