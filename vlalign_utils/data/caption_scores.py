"""How right a description is: attribute by attribute for the world's scenes, and CIDEr for any text."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pycocoevalcap.cider.cider import Cider
from scipy.optimize import linear_sum_assignment

from vlalign_utils.data.language import ATTRIBUTES, ITALIAN
from vlalign_utils.data.scenes import COLOURS, COLUMNS, FORMS, ROWS, SIZES

_AXES = {"size": SIZES, "colour": COLOURS, "form": FORMS, "row": ROWS, "column": COLUMNS}
_LEXICON = {
    said: (axis, en) for axis, words in _AXES.items() for en in words for said in (en, ITALIAN.get(en, en))
}


class Agreement(NamedTuple):
    """The share of things whose size, colour, form and place are right; things too many count as wrong."""

    size: float
    colour: float
    form: float
    place: float

    @property
    def mean(self) -> float:
        """The mean over attributes."""
        return sum(self) / len(self)


def agreement(said: str, truth: str) -> Agreement:
    """Compare two descriptions: the things of each are paired so that as many attributes as possible agree.

    Things are divided by commas; words may stand in any order and in either language. A truth that is no
    description of the world's things with all their attributes (a caption of one's own) is compared by words:
    all four are then the F1 of the words, 1 for the same words.
    """
    one, two = _things(said), _things(truth)
    if not all(thing[name] for thing in two for name in ATTRIBUTES):
        alike = _word_f1(_plain(said).split(), _plain(truth).split())
        return Agreement(alike, alike, alike, alike)
    same = np.array(
        [[[a[name] == b[name] != "" for name in ATTRIBUTES] for b in two] for a in one], dtype=float
    )
    pairs = linear_sum_assignment(same.sum(-1), maximize=True)
    return Agreement(*(same[pairs].sum(0) / max(len(one), len(two))))


def _things(text: str) -> list[dict[str, str]]:
    found = []
    for phrase in text.strip(" .").lower().split(","):
        words = dict(_LEXICON[word] for word in phrase.split() if word in _LEXICON)
        row, column = words.get("row", ""), words.get("column", "")
        place = {"place": f"{row} {column}" if row and column else ""}
        found.append({name: words.get(name, "") for name in ATTRIBUTES} | place)
    return found


def _word_f1(said: Sequence[str], truth: Sequence[str]) -> float:
    shared = (Counter(said) & Counter(truth)).total()
    return 2 * shared / (len(said) + len(truth)) if said or truth else 1.0


def cider(said: Sequence[str], truth: Sequence[Sequence[str]]) -> Float[np.ndarray, " items"]:
    """CIDEr-D of each text against its references (Vedantam 2015), as the COCO evaluation computes it.

    How much a word counts is taken from all references given, so the texts of one evaluation belong
    together. Raises ValueError when texts and references are not equally many, and when an item's references
    hold no word that others lack: every word then counts 0, and so would the text itself.
    """
    if len(said) != len(truth):
        raise ValueError(f"{len(said)} texts but references for {len(truth)}: give some for each text")
    references = {i: [_plain(text) for text in texts] for i, texts in enumerate(truth)}
    words = {i: {word for text in texts for word in text.split()} for i, texts in references.items()}
    everywhere = set.intersection(*words.values()) if words else set()
    for i, own in words.items():
        if own <= everywhere:
            raise ValueError(
                f"item {i}: every word of its references is in those of all items, so CIDEr gives it "
                "no weight; score all items of an evaluation at once, or use agreement"
            )
    _, scores = Cider().compute_score(references, {i: [_plain(text)] for i, text in enumerate(said)})
    return np.asarray(scores, dtype=np.float64)


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").replace(".", " ").split())
