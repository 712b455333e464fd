"""Rules of the notebooks' parameters, by name: the same name means the same in every notebook.

A new parameter of a notebook gets its rule here. Bounds that depend on the model are given as functions of
its number of decoder layers, which is infinite while the model's configuration is not at hand. Suites
and concepts are those of the world that the model's registry entry names.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from vlalign_utils.data.worlds import WORLDS
from vlalign_utils.pipeline.registry import DRAWN

SEEDS = 2**32 - 1  # the largest that NumPy and scikit-learn take
# Sweeps follow the probability of an answer to a question about an image.
SWEPT = {
    world.name: [name for name, suite in world.suites.items() if suite.metric == "answer" and name != "text"]
    for world in WORLDS.values()
}


class Rule(NamedTuple):
    """A rule: what is expected, in words, and whether a value (and the number of layers) meets it."""

    expected: str
    holds: Callable[[Any, float], bool]
    of_layers: bool = False  # depends on the number of decoder layers


def _whole(low: int, high: int | None = None) -> Rule:
    words = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(words, lambda value, _: _is_whole(value, low, math.inf if high is None else high))


def _is_whole(value: Any, low: float, high: float) -> bool:
    return type(value) is int and low <= value <= high


def _distinct(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(value.count(one) == 1 for one in value)


def _names(known: Collection[str], what: str, none: str = "") -> Rule:
    """Some of the known names; with `none`, which says what an empty list stands for, it may be empty."""
    words = f"a list of one or more different {what} among {', '.join(known)}"
    words += f", or an empty one {none}" if none else ""

    def holds(value: Any, _: float) -> bool:
        return (bool(none) and value == []) or (_distinct(value) and all(one in known for one in value))

    return Rule(words, holds)


def _some(lens: Collection[str]) -> Rule:
    return Rule(
        f"one of {' and '.join(lens)} at least among the concepts, for the lenses",
        lambda values, _: not values["concepts"] or any(one in lens for one in values["concepts"]),
    )


def _band(value: Any, layers: float) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and all(_is_whole(end, 0, layers) for end in value)):
        return False
    first, stop = value
    return first < stop and stop - first < layers


WINDOW = Rule(
    "a number of layers that one window holds, from 1 to all of them",
    lambda value, layers: _is_whole(value, 1, layers),
    of_layers=True,
)
RULES: dict[str, Rule] = {
    "seed": _whole(0, SEEDS),
    "scenes_seed": _whole(0, SEEDS),
    "items": _whole(2),
    "lens_items": _whole(2),
    "questions": _whole(2),
    "pairs": _whole(2),
    "compared": _whole(2),
    "bypassed": _whole(2),
    "calibration": _whole(2),
    "texts": _whole(2),
    "scenes": _whole(12),  # more than the neighbours that are counted
    "k": _whole(1),
    "permutations": _whole(1),
    "width": WINDOW,
    "removal_width": WINDOW,
    "stride": _whole(1),
    "targets": Rule(
        "a list of one or more different decoder layers, counted from 0",
        lambda value, layers: _distinct(value) and all(_is_whole(one, 0, layers - 1) for one in value),
        of_layers=True,
    ),
    "band": Rule(
        "two numbers, [first layer, layer after the last], that hold some but not all decoder layers",
        _band,
        of_layers=True,
    ),
    "steps": _whole(1),
    "batch_size": _whole(1),
    "seeds": _whole(1),
    "rates": Rule(
        "a list of one or more different numbers above 0",
        lambda value, _: _distinct(value) and all(0 < rate < math.inf for rate in value),
    ),
    "trial_steps": _whole(1),
    "rank": _whole(1),
    "precision": Rule("auto, no, bf16 or fp16", lambda value, _: value in ("auto", "no", "bf16", "fp16")),
    "rounds": _whole(1),
}
OF_WORLD = {
    name: {
        "suites": _names(SWEPT[name], f"suites of the world '{name}',"),
        "concepts": _names(world.concepts, f"concepts of the world '{name}',", "for the chapter's own"),
    }
    for name, world in WORLDS.items()
}
# Parameters that must fit together, where a notebook has them all.
RELATIONS: dict[tuple[str, ...], Rule] = {
    ("k", "items"): Rule("fewer neighbours than items", lambda values, _: values["k"] < values["items"]),
    ("lens_items", "items"): Rule(
        "at most as many items for the lenses as there are",
        lambda values, _: values["lens_items"] <= values["items"],
    ),
    ("stride", "width"): Rule(
        "no layer between two windows", lambda values, _: values["stride"] <= values["width"]
    ),
}


RELATIONS_OF_WORLD: dict[str, dict[tuple[str, ...], Rule]] = {
    name: {("concepts", "lens_items"): _some(world.lens)} for name, world in WORLDS.items()
}


def needs_layers(params: Mapping[str, Any]) -> bool:
    """Check whether a rule of one of the parameters depends on the number of decoder layers."""
    return any(RULES[name].of_layers for name in params if name in RULES)


def fault(params: Mapping[str, Any], layers: float = math.inf, world: str = DRAWN) -> str | None:
    """Describe the first parameter that breaks its rule, None when all are right.

    `layers` is the model's number of decoder layers, infinite when it is not known; `world` is the one whose
    suites are asked.
    """
    rules = RULES | OF_WORLD[world]
    for name, value in params.items():
        rule = rules.get(name)
        if rule is not None and not rule.holds(value, layers):
            known = rule.of_layers and layers < math.inf
            return f"parameter '{name}' must be {rule.expected}{_of(layers) if known else ''}, not {value!r}"
    for names, relation in (RELATIONS | RELATIONS_OF_WORLD[world]).items():
        if all(name in params for name in names) and not relation.holds(params, layers):
            told = ", ".join(f"'{name}' is {params[name]!r}" for name in names)
            return f"parameters {told}: there must be {relation.expected}"
    return None


def _of(layers: float) -> str:
    return f" (this model has {layers:.0f}, 0 to {layers - 1:.0f})"
