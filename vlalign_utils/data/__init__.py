"""The embedded world: seeded scenes and real handwritten digits, in pictures and in two languages."""

from vlalign_utils.data.pairs import Pair, pairs

__all__ = ["Pair", "pairs"]
