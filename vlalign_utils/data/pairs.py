"""Pairs of the drawn world: a scene as an image and a caption in each language, with what can be probed."""

from PIL import Image

from vlalign_utils.data.language import LANGUAGES, Language, caption, describe
from vlalign_utils.data.paired import Pair
from vlalign_utils.data.render import render
from vlalign_utils.data.scenes import (
    COLOURS,
    COLUMNS,
    FORMS,
    MAX_THINGS,
    ROWS,
    SIZES,
    Scene,
    Split,
    scenes,
)

CONCEPTS = {
    "form": FORMS,
    "colour": COLOURS,
    "size": SIZES,
    "row": ROWS,
    "column": COLUMNS,
}


def caption_pairs(
    n: int, seed: int = 0, split: Split = "test", min_things: int = 1, max_things: int = MAX_THINGS
) -> list[Pair]:
    """`n` pairs whose captions differ in their letters; the same arguments always give the same pairs.

    `labels` index into CONCEPTS, for the thing that the captions name first; `count` is the number of things
    less one.

    Captions that are the same letters in another order count as one, in each language: words share pieces,
    and the mean of a caption's pieces at layer 0 knows no order. Raises ValueError when the world has fewer
    such captions than asked for.
    """
    found: list[Scene] = []
    seen: set[tuple[Language, str]] = set()
    for scene in scenes(20 * n, seed, split, min_things, max_things):
        letters = {(language, "".join(sorted(caption(scene, language)))) for language in LANGUAGES}
        if seen.isdisjoint(letters):
            seen |= letters
            found.append(scene)
        if len(found) == n:
            return [_pair(scene) for scene in found]
    raise ValueError(
        f"only {len(found)} distinct scenes of {min_things} to {max_things} things were found; asked for {n}"
    )


def _pair(scene: Scene) -> Pair:
    first = scene.things[0]
    labels = {name: values.index(getattr(first, name)) for name, values in CONCEPTS.items()}
    return Pair(
        scene,
        Image.fromarray(render(scene)),
        {language: caption(scene, language) for language in LANGUAGES},
        labels | {"count": len(scene.things) - 1},
        describe("en"),
    )
