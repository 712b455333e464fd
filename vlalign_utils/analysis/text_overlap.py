"""How alike a language model arranges texts that say the same in other words, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vlalign_utils.analysis.neighbours import layer_neighbours, overlap_grid
from vlalign_utils.analysis.phase import Search, search
from vlalign_utils.analysis.word_bags import bag_of_words
from vlalign_utils.data.worlds import World
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.states import collect


@dataclass(frozen=True)
class TextOverlap:
    """Overlap of neighbours of the main texts with each other kind of text, per item, with k neighbours.

    `same_depth` is by point of the residual stream, `bags` that of bags of words, which have no layers.
    """

    same_depth: dict[str, Float[np.ndarray, "items points"]]
    bags: dict[str, Float[np.ndarray, " items"]]
    k: int

    def excess(self, names: Sequence[str] = ()) -> Float[np.ndarray, "items points"]:
        """Overlap above that of bags of words, mean over the kinds of text named, by default all."""
        chosen = names or list(self.bags)
        return np.mean([self.same_depth[name] - self.bags[name][:, None] for name in chosen], axis=0)


def text_overlap(
    vlm: VLM, texts: Mapping[str, Sequence[str]], k: int = 10, seed: int = 0, label: str = "texts"
) -> TextOverlap:
    """Compare the first kind of text with each of the others, at equal depth; means over tokens.

    Args:
        vlm: a model; where it is its first stage, it has not seen an image.
        texts: by kind, as many of each: text i of every kind says the same.
        k: neighbours.
        seed: of the random word vectors of the null.
        label: of the progress bars.

    Raises ValueError as `layer_neighbours` does, and for fewer than two kinds.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> from vlalign_utils.data.pairs import caption_pairs
        >>> said = [pair.caption for pair in caption_pairs(40, 0, "test")]
        >>> texts = {"caption": [one["en"] for one in said], "Italian": [one["it"] for one in said]}
        >>> text_overlap(load_vlm("zoo/llava", "base"), texts).excess().shape
        (40, 9)
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} kind of text: give the main texts and the same in other words")
    main, *others = texts
    states = {
        name: collect(vlm, list(own), None, ("text",), label=f"{label}, {name}")["text"]
        for name, own in texts.items()
    }
    layers = {name: layer_neighbours(found, k) for name, found in states.items()}
    bags = {name: layer_neighbours(bag_of_words(vlm, own, seed)[None], k) for name, own in texts.items()}
    every = np.arange(len(states[main]))
    same = {
        name: overlap_grid(layers[main], layers[name]).double().numpy()[every, every].T for name in others
    }
    null = {name: overlap_grid(bags[main], bags[name]).double().numpy()[0, 0] for name in others}
    return TextOverlap(same, null, k)


def find_phase(
    vlm: VLM, world: World, scenes: int = 300, k: int = 10, seed: int = 0, label: str = "texts"
) -> Search:
    """Look for the abstraction phase of a model: where does it arrange texts of one meaning alike?

    Args:
        vlm: a model that was not tuned on images, as the first stage of a chain.
        world: whose scenes are said in several ways (`World.meanings`).
        scenes: held-out ones; half of them locate the phase, the other half tests it.
        k, seed, label: as in `text_overlap`; the seed is that of the scenes and of the halves, too.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> from vlalign_utils.data.worlds import WORLDS
        >>> found = find_phase(load_vlm("zoo/llava", "base"), WORLDS["drawn"], 60)
        >>> found.phase is None, found.missing()[:37]
        (True, 'the overlap above bags of words is -0')
    """
    texts = world.texts(world.caption_pairs(scenes, seed, "test"))
    return search(text_overlap(vlm, texts, k, seed, label).excess(), seed)
