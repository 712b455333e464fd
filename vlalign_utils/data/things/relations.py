"""Where things are to one another: in a row, left and right; in a column, above and below."""

from dataclasses import dataclass

from vlalign_utils.data.things.scenes import Scene

# in a line's order: the earlier thing's relation to the later one, then the other way round
WORDS = {"row": ("to the left of", "to the right of"), "column": ("above", "below")}
SHORT = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


@dataclass(frozen=True, slots=True)
class Relation:
    """A thing is `words` a landmark; both are numbers of drawings in the scene.

    `only` says that nothing else is on that side of the landmark.
    """

    thing: int
    landmark: int
    words: str
    opposite: str
    only: bool

    @property
    def short(self) -> str:
        """One word for it."""
        return SHORT[self.words]


def relations(scene: Scene) -> list[Relation]:
    """All relations between two of the things of a row or column. Empty for other arrangements."""
    if scene.arrangement not in WORDS:
        return []
    before, after = WORDS[scene.arrangement]
    n = len(scene.placed)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return [
        Relation(i, j, before, after, j == 1) if i < j else Relation(i, j, after, before, j == n - 2)
        for i, j in pairs
    ]
