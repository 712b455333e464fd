"""Pairs of the world of things: a scene as an image, a caption, and in words that share no name with it."""

from collections.abc import Collection

import numpy as np

from vlalign_utils.data.items import Split
from vlalign_utils.data.paired import Pair
from vlalign_utils.data.things.questions import PHRASINGS
from vlalign_utils.data.things.scenes import draw_scene
from vlalign_utils.data.things.suites import about
from vlalign_utils.data.things.wordings import WORDINGS

ASK = PHRASINGS["caption"][0]
MOST = 3  # things
TRIES = 20  # scenes drawn for each pair wanted, at most
# Pairs that chapters compare: neighbours are undefined where two texts are alike to a bag of pieces.
COMPARED = ("en", "described", "associated", "kinds", "it")


def caption_pairs(
    n: int, seed: int = 0, split: Split = "test", distinct: Collection[str] = COMPARED
) -> list[Pair]:
    """`n` scenes of one to three things with their texts by wording, `wordings.WORDINGS`.

    In each of the `distinct` wordings no two texts have the same letters: the mean of a text's pieces at
    layer 0 knows no order. The same arguments always give the same pairs. Raises ValueError when the world
    has fewer such scenes than asked for.
    """
    rng = np.random.default_rng([seed, 11])
    seen: set[tuple[str, str]] = set()
    found: list[Pair] = []
    for _ in range(TRIES * n):
        scene = draw_scene(rng, split, int(rng.integers(1, MOST + 1)))
        texts = {wording: say(scene) for wording, say in WORDINGS.items()}
        letters = {(wording, "".join(sorted(texts[wording]))) for wording in distinct}
        if seen.isdisjoint(letters):
            seen |= letters
            found.append(Pair(scene, about.image_of(scene), texts, {}, ASK))
        if len(found) == n:
            return found
    raise ValueError(f"only {len(found)} scenes with texts of their own were found; asked for {n}")
