"""Pairs of scenes that differ in one thing, and the question whose answer that changes.

The other scene has the same background, places, sizes and styles: all that the thing does not cover is the
same pixel for pixel.
"""

from dataclasses import dataclass, replace

import numpy as np

from vlalign_utils.data.items import Item, Split
from vlalign_utils.data.paired import MinimalPair
from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import Question, ask_beside, ask_place
from vlalign_utils.data.things.render import coverage
from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.splits import shows_held_out, trained_things
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.suites.naming import chance, every_name
from vlalign_utils.data.things.table import Thing
from vlalign_utils.data.things.words import accepted_names, capital, with_article

TOPICS = {"place": ask_place, "beside": ask_beside}
TRIES = 20  # scenes drawn for each pair wanted, at most


@dataclass(frozen=True)
class ScenePair:
    """Two scenes that differ in thing number `thing`, and one question with two answers."""

    scene: Scene
    other: Scene
    thing: int
    question: Question
    other_question: Question


def minimal_pairs(n: int, seed: int = 0, split: Split = "test") -> list[MinimalPair]:
    """`n` pairs with their images, as `scene_pairs` draws and asks about them."""
    return [
        MinimalPair(
            _item(pair.scene, pair.thing, pair.question),
            _item(pair.other, pair.thing, pair.other_question),
            coverage(pair.scene, about.SIDE)[pair.thing],
        )
        for pair in scene_pairs(n, seed, split)
    ]


def scene_pairs(n: int, seed: int = 0, split: Split = "test") -> list[ScenePair]:
    """`n` pairs of two or three things in a row or column, asked about by place and by a neighbour in turn.

    The pair keeps to its split: both or neither scene shows what is held out. The two answers differ in the
    noun alone. The same arguments always give the same pairs. Raises ValueError for n below one.
    """
    if n < 1:
        raise ValueError(f"n is {n}; there is at least one pair")
    rng = np.random.default_rng([seed, 12])
    found: list[ScenePair] = []
    for _ in range(TRIES * n):
        pair = _pair(about.lined_up(rng, split), list(TOPICS)[len(found) % 2], rng)
        if pair is not None:
            found.append(pair)
        if len(found) == n:
            return found
    raise ValueError(f"only {len(found)} of {TRIES * n} scenes gave a pair; asked for {n}")


def _pair(scene: Scene, topic: str, rng: np.random.Generator) -> ScenePair | None:
    ask, draw = TOPICS[topic], int(rng.integers(2**31))
    question = ask(scene, np.random.default_rng(draw))
    at = [capital(with_article(thing)) for thing in scene.things].index(question.answer)
    options = _in_place_of(scene, at)
    if not options:
        return None
    other = _with(scene, at, options[rng.integers(len(options))])
    # With the same draws the other scene is asked the same: the question names what stays.
    return ScenePair(scene, other, at, question, ask(other, np.random.default_rng(draw)))


def _in_place_of(scene: Scene, at: int) -> list[Thing]:
    """Things that may stand in the place of one, for which the scene stays in its split."""
    own = scene.things[at]
    return [
        thing
        for thing in trained_things()
        if (thing.article, thing.number) == (own.article, own.number)
        and not any(overlap(thing, shown) for shown in scene.things)
        and _shows_held_out(_with(scene, at, thing)) == (scene.split == "test")
    ]


def _with(scene: Scene, at: int, thing: Thing) -> Scene:
    placed = list(scene.placed)
    placed[at] = replace(placed[at], index=thing.index)
    return replace(scene, placed=tuple(placed))


def _shows_held_out(scene: Scene) -> bool:
    return shows_held_out(scene.things, [placed.style for placed in scene.placed])


def _item(scene: Scene, at: int, question: Question) -> Item:
    asked = about.Asked(
        scene,
        question,
        choices=every_name(),
        guess=chance(),
        group=question.topic,
        accepted=accepted_names(scene.things[at]),
    )
    return asked.item()
