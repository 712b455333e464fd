"""How right a description is: attribute by attribute for the world's scenes, and CIDEr for any text."""

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

    Things are divided by commas; words may stand in any order and in either language.
    """
    one, two = _things(said), _things(truth)
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


def cider(said: Sequence[str], truth: Sequence[Sequence[str]]) -> Float[np.ndarray, "items"]:
    """CIDEr-D of each text against its references (Vedantam 2015), as the COCO evaluation computes it.

    How much a word counts is taken from all references given, so the texts of one evaluation belong
    together. Raises ValueError when texts and references are not equally many.
    """
    if len(said) != len(truth):
        raise ValueError(f"{len(said)} texts but references for {len(truth)}: give some for each text")
    references = {i: [_plain(text) for text in texts] for i, texts in enumerate(truth)}
    _, scores = Cider().compute_score(references, {i: [_plain(text)] for i, text in enumerate(said)})
    return np.asarray(scores, dtype=np.float64)


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").replace(".", " ").split())
