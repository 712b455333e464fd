"""What holds of the concepts of every world."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlalign_utils.data.paired import Pair
from vlalign_utils.data.worlds import World


def check_balance(world: World, concept: str, items: Sequence[Pair], n: int) -> None:
    """All values occur, equally often to within one."""
    count = Counter(item.labels[concept] for item in items)
    assert set(count) == set(range(len(world.concepts[concept].values)))
    assert max(count.values()) - min(count.values()) <= 1
    assert count.total() == n


def check_repeats(world: World, concept: str, n: int, image_of: Callable[[Any], Any]) -> None:
    """The same arguments give the same items, whose images are those of their scenes; another seed others."""
    first, again = (world.concept_items(concept, n, 5) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert (one.scene, one.caption, one.labels) == (two.scene, two.caption, two.labels)
        assert np.array_equal(np.asarray(one.image), np.asarray(two.image))
        assert np.array_equal(np.asarray(one.image), np.asarray(image_of(one.scene)))
    assert [i.caption for i in world.concept_items(concept, n, 6)] != [i.caption for i in again]
