"""The embedded world: seeded scenes and real handwritten digits, in pictures and in two languages."""

from vlalign_utils.data.concepts import concept_items
from vlalign_utils.data.pairs import Pair, pairs

__all__ = ["Pair", "concept_items", "pairs"]
