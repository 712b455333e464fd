"""Pairs of the world of things: a thing as an image, a caption, and in words that share no name with it."""

from collections.abc import Iterator

import numpy as np

from vlalign_utils.data.items import Split
from vlalign_utils.data.paired import Pair
from vlalign_utils.data.things.questions import PHRASINGS
from vlalign_utils.data.things.scenes import Scene
from vlalign_utils.data.things.splits import trained_things
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.wordings import WORDINGS

ASK = PHRASINGS["caption"][0]
# What chapters compare: neighbours are undefined where two texts are alike to a bag of pieces.
COMPARED = ("en", "described", "associated", "it")


def caption_pairs(n: int, seed: int = 0, split: Split = "test") -> list[Pair]:
    """`n` scenes of one thing each, all of different things, with their texts by wording (`WORDINGS`).

    One thing, for the number of things would show in the length of every text, and texts would be neighbours
    for that alone. In each of the wordings COMPARED no two texts have the same letters: the mean of a text's
    pieces at layer 0 knows no order. The same arguments always give the same pairs. Raises ValueError when
    there are fewer such things than asked for.
    """
    seen: set[tuple[str, str]] = set()
    found: list[Pair] = []
    for scene in _scenes(np.random.default_rng([seed, 11]), split):
        texts = {wording: say(scene) for wording, say in WORDINGS.items()}
        letters = {(wording, "".join(sorted(texts[wording]))) for wording in COMPARED}
        if seen.isdisjoint(letters):
            seen |= letters
            found.append(Pair(scene, about.image_of(scene), texts, {}, ASK))
        if len(found) == n:
            return found
    raise ValueError(f"only {len(found)} things have texts of their own in every wording; asked for {n}")


def _scenes(rng: np.random.Generator, split: Split) -> Iterator[Scene]:
    pool = trained_things()
    for thing in about.in_turn(pool, len(pool), rng):
        yield about.alone(thing, rng, split)
