"""Pairs of scenes that differ in one attribute of one thing, and the question whose answer that changes.

Both scenes have one seed, from which the renderer draws alike whatever a thing's form or colour: ground,
noise, jitter and all other things are the same pixel for pixel.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.language import LANGUAGES, Question, ask_thing
from vlalign_utils.data.paired import MinimalPair
from vlalign_utils.data.render import coverage
from vlalign_utils.data.scenes import COLOURS, DIGITS, SHAPES, Scene, Split, Thing, held_out, scenes
from vlalign_utils.data.suites.about import item_of

Topic = Literal["colour", "form"]


@dataclass(frozen=True)
class ScenePair:
    """Two scenes that differ in the `topic` of thing number `thing`, and one question with two answers."""

    scene: Scene
    other: Scene
    thing: int
    topic: Topic
    question: Question
    other_question: Question


def minimal_pairs(n: int, seed: int = 0, split: Split = "test") -> list[MinimalPair]:
    """`n` pairs with their images, as `scene_pairs` draws and asks about them."""
    kind = KINDS["scenes"]
    return [
        MinimalPair(
            item_of(kind, pair.scene, pair.question),
            item_of(kind, pair.other, pair.other_question),
            coverage(pair.scene)[pair.thing],
        )
        for pair in scene_pairs(n, seed, split)
    ]


def scene_pairs(n: int, seed: int = 0, split: Split = "test") -> list[ScenePair]:
    """`n` pairs, half of them about a colour; the same arguments always give the same pairs.

    A scene has two or three things, and the pair keeps to its split: both or neither scene shows a held-out
    combination. A shape becomes another shape, a digit another digit. Raises ValueError for n below one.
    """
    if n < 1:
        raise ValueError(f"n is {n}; there is at least one pair")
    rng = np.random.default_rng([seed, 2])
    found: list[ScenePair] = []
    # A thing may be the only one that can keep its scene in the split: some scenes give no pair.
    for scene in scenes(20 * n, int(rng.integers(2**31)), split, min_things=2):
        topic = get_args(Topic)[len(found) % 2]
        pair = _pair(scene, topic, rng)
        if pair is not None:
            found.append(pair)
        if len(found) == n:
            return found
    raise ValueError(f"only {len(found)} of {20 * n} scenes gave a pair; asked for {n}")


def _pair(scene: Scene, topic: Topic, rng: np.random.Generator) -> ScenePair | None:
    at = int(rng.integers(len(scene.things)))
    options = _changed(scene, at, topic)
    if not options:
        return None
    other = options[rng.integers(len(options))]
    language, draw = LANGUAGES[rng.integers(2)], int(rng.integers(2**31))
    # Asked of each scene with the same draws, the question names the thing by the same, unchanged attribute.
    asked, asked_of_other = (
        ask_thing(replace(s, things=(s.things[at],)), topic, language, np.random.default_rng(draw))
        for s in (scene, other)
    )
    return ScenePair(scene, other, at, topic, asked, asked_of_other)


def _changed(scene: Scene, at: int, topic: Topic) -> list[Scene]:
    """All scenes of the split in which thing `at` has another value of the topic, one that no thing has."""
    thing = scene.things[at]
    values = COLOURS if topic == "colour" else DIGITS if thing.is_digit else SHAPES
    free = [value for value in values if all(getattr(t, topic) != value for t in scene.things)]
    changed = [
        replace(scene, things=(*scene.things[:at], _with(thing, topic, v), *scene.things[at + 1 :]))
        for v in free
    ]
    shows = scene.split == "test"
    return [s for s in changed if any(held_out(t.form, t.colour) for t in s.things) == shows]


def _with(thing: Thing, topic: Topic, value: str) -> Thing:
    return replace(thing, colour=value) if topic == "colour" else replace(thing, form=value)
