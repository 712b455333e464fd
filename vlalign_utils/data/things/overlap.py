"""Things of which one may rightly be called what the other is: no question may tell them apart."""

from functools import cache

from vlalign_utils.data.things.table import Thing
from vlalign_utils.data.things.words import accepted_names


def overlap(a: Thing, b: Thing) -> bool:
    """Whether one thing may be called by a name of the other: a taxi is a car.

    >>> from vlalign_utils.data.things.table import by_name
    >>> taxi, car, owl = (by_name()[name] for name in ("taxi", "car", "owl"))
    >>> overlap(car, taxi), overlap(owl, taxi)
    (True, False)
    """
    return not (_names(a).isdisjoint(_labels(b)) and _names(b).isdisjoint(_labels(a)))


@cache
def _names(thing: Thing) -> frozenset[str]:
    return frozenset(name.lower() for name in accepted_names(thing))


@cache
def _labels(thing: Thing) -> frozenset[str]:
    """What the thing may be called: its names, the nouns that they end in, and what it is a kind of."""
    words = [name.split() for name in _names(thing)]
    ends = {" ".join(name[i:]) for name in words for i in range(len(name))}
    return frozenset(ends) | frozenset(thing.hypernyms)
