"""What a vision tower tells apart by itself: names and kinds by nearest neighbours in a style it never saw.

Each image is the mean of its features over positions. A thing drawn in the held-out style is named after the
most similar image, by cosine, of the same things in the trained styles; the kind of a held-out thing is that
of the most similar trained thing. Every image has a scene of its own, of the test split.
"""

from collections.abc import Callable, Sequence
from statistics import mode
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlalign_utils.data.things.render import render
from vlalign_utils.data.things.scenes import draw_scene
from vlalign_utils.data.things.splits import (
    HELD_OUT_STYLE,
    TRAINED_STYLES,
    held_out_things,
    trained_things,
)
from vlalign_utils.data.things.table import Thing
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import bootstrap_mean
from vlalign_utils.zoo.connector import token_features
from vlalign_utils.zoo.naming_data import pixels

SEED = 2026
BATCH = 64  # images

Embed = Callable[[list[Image.Image]], Float[Tensor, "images channels"]]


def tower_scores(embed: Embed, side: int, queries: int = 8, things: int | None = None) -> dict[str, Any]:
    """Score a tower by nearest neighbours.

    Args:
        embed: the tower's features of images, averaged over positions.
        side: of an image, in pixels.
        queries: images of each held-out thing; each trained thing has one.
        things: how many trained things, the first of the table; all where None.

    Returns for each question its mean score (`value`), the 95 % interval over things (`low`, `high`), the
    number of images (`n`) and `chance`: that of a random name, or of always naming the most frequent kind.
    """
    trained, held_out = list(trained_things()[:things]), list(held_out_things())
    found = {}
    banks = {}
    for name, pool, times in (("trained things", trained, 1), ("held-out things", held_out, queries)):
        asked = np.repeat(np.arange(len(pool)), times)
        stored = np.tile(np.arange(len(pool)), len(TRAINED_STYLES))
        styles = np.repeat(TRAINED_STYLES, len(pool)).tolist()
        banks[name] = _features(embed, [pool[i] for i in stored], styles, side, SEED)
        views = _features(embed, [pool[i] for i in asked], [HELD_OUT_STYLE] * len(asked), side, SEED + 1)
        nearest = stored[nearest_rows(views, banks[name])]
        found[f"name, {name}"] = _score(nearest == asked, asked, 1 / len(pool))
        if pool is held_out:
            kinds = np.array([thing.kind for thing in pool])[asked]
            of_trained = np.array([thing.kind for thing in trained] * len(TRAINED_STYLES))
            right = of_trained[nearest_rows(views, banks["trained things"])] == kinds
            common = mode(of_trained)
            found["kind, held-out things"] = _score(right, asked, float((kinds == common).mean()))
    return found


def nearest_rows(
    queries: Float[Tensor, "queries channels"], bank: Float[Tensor, "rows channels"]
) -> Int[np.ndarray, " queries"]:
    """The row of `bank` with the highest cosine, for each query.

    >>> nearest_rows(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist()
    [1]
    """
    found: Int[np.ndarray, " queries"] = (F.normalize(queries) @ F.normalize(bank).T).argmax(1).numpy()
    return found


def tower_embedding(vlm: VLM) -> Embed:
    """What `tower_scores` asks of a model's tower: the features that the connector is given."""

    def embed(images: list[Image.Image]) -> Float[Tensor, "images channels"]:
        with torch.inference_mode():
            features = token_features(vlm, pixels(vlm.processor, images))
        return features.float().mean(1)

    return embed


def _features(
    embed: Embed, shown: Sequence[Thing], styles: Sequence[str], side: int, seed: int
) -> Float[Tensor, "images channels"]:
    """Features of one scene for each thing, in the style at its place."""
    images = [
        Image.fromarray(
            render(
                draw_scene(np.random.default_rng([seed, i]), "test", 1, among=[thing], styles=[style]), side
            )
        )
        for i, (thing, style) in enumerate(zip(shown, styles, strict=True))
    ]
    return torch.cat([embed(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def _score(right: np.ndarray, of_thing: Int[np.ndarray, " queries"], chance: float) -> dict[str, float | int]:
    by_thing = np.array([right[of_thing == thing].mean() for thing in np.unique(of_thing)])
    value, low, high, _ = bootstrap_mean(by_thing, SEED)
    numbers = {"value": value, "low": low, "high": high, "chance": chance}
    return {name: round(float(number), 4) for name, number in numbers.items()} | {"n": len(right)}
