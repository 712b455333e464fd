"""Whether two English words share a stem: a conservative rule, for texts that must not give a name away."""

import re

SHORTEST_PART = 4  # letters of a word that count when they occur inside another ("rain" in "rainbow")
FUNCTION_WORDS = frozenset(
    {"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"}
)
SHORTEST_PREFIX = 5  # letters that two words may not begin with alike ("astronaut", "astronomy")


def shares_stem(a: str, b: str) -> bool:
    """Whether two words have a stem in common; true too often rather than too seldom.

    >>> shares_stem("cherries", "cherry"), shares_stem("rain", "rainbow"), shares_stem("cat", "cattle")
    (True, True, False)
    """
    short, long = sorted((_singular(a.lower()), _singular(b.lower())), key=len)
    return (
        short == long
        or (len(short) >= SHORTEST_PART and short in long)
        or (len(short) >= SHORTEST_PREFIX and long.startswith(short[:SHORTEST_PREFIX]))
    )


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation and function words."""
    return [word for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in FUNCTION_WORDS]


def _singular(word: str) -> str:
    for ending, replacement in (("ies", "y"), ("ves", "f"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + replacement
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
