"""What chains of pretrained parts can do: scores of every stage, by suite, beside the bars set in advance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.evidence.crossed import crossed_mean
from vlalign_utils.evidence.findings import counted, joined
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture, Registry
from vlalign_utils.zoo.bars import THINGS, Bar, measured
from vlalign_utils.zoo.parts_build import TOWER_SCORES
from vlalign_utils.zoo.scores_file import CURVE, FILE, STRICT, ChainScores, of_seeds, read_scores

PAGE = "abilities.md"
RULES = """Mean scores on held-out items, with 95 % intervals. An answer in the model's own words is right
by lenient rules: case, punctuation, articles and synonyms do not matter; by strict rules it is the
expected one to the letter. Of listed answers the likeliest by token counts; a description has its CIDEr /
10. Chance is the best blind rule. Where there are several seeds, the intervals are for other seeds and
other items, as crossed factors."""
LEARNING = """Where bars are missed: what the last stage had reached after parts of its training, in the first
seed, on half as many items. The learning rate falls to nothing only at the end, so that the earlier columns
are a little low."""
YES_NO = {True: "yes", False: "**no**"}
ALONE = {
    "name, trained things": "names {} of the trained things",
    "kind, held-out things": "tells the kind of {} of the held-out things",
}


class Chain(NamedTuple):
    """A model with the names of its stages, and the scores of each of its seeds."""

    title: str
    stages: list[str]
    seeds: list[ChainScores]
    curve: ChainScores | None = None  # of the first seed, after numbers of images
    tower: Mapping[str, Interval] = {}  # what its tower tells apart by itself, in the held-out style

    @property
    def last(self) -> str:
        """The stage that is to reach the bars."""
        return self.stages[-1]


def chains(entries: Registry, root: Path) -> list[Chain]:
    """Models of the world of things that have been scored, each with the seeds that repeat it."""
    found = []
    for name in entries.originals():
        arch = entries.architecture(name)
        same = [arch, *(other for other in entries.architectures.values() if other.repeats == name)]
        seeds = [scores for one in same if (scores := _scores(one, root)) is not None]
        if seeds:
            folder = root / arch.model
            found.append(
                Chain(arch.title, arch.stages, seeds, read_scores(folder / CURVE), tower_alone(folder))
            )
    return found


def _scores(arch: Architecture, root: Path) -> ChainScores | None:
    return None if arch.laboratory else read_scores(root / arch.model / FILE)


def write(entries: Registry, folder: Path, root: Path) -> None:
    """Write `abilities.md`, which the page of that name includes."""
    known = chains(entries, root)
    lines = [RULES, "## Beside the bars", against_bars(known)] if known else ["No model has been scored yet."]
    for chain in known:
        lines += [f"## {text(chain.title)}", by_stage(chain)]
        if len(chain.seeds) > 1:
            lines += [f"The stage {text(chain.last)} of each seed:", by_seed(chain)]
        if chain.curve is not None:
            lines += [LEARNING, by_images(chain.curve)]
    write_atomic(folder / PAGE, "\n\n".join(lines) + "\n")


def against_bars(known: Sequence[Chain]) -> str:
    """A table of the last stage of each chain beside every bar, and a sentence on those that are missed."""
    first, rows, missed, limits = known[0].seeds[0], [], [], []
    for asked in THINGS:
        cells = []
        for chain in known:
            found = measured(chain.seeds, chain.last, asked)
            cells += ["", ""] if found is None else [interval(found), YES_NO[asked.reached(found)]]
            if found is not None and not asked.reached(found):
                short = f"{found.value:.2f} where {asked.least:.2f} is asked".replace("-", "−")
                missed.append(f"{named(asked)} ({chain.title}: {short})")
                limits += _limit(chain, asked)
        about = first.suites.get(asked.suite)
        n = "" if about is None else number(len(about.rows(asked.group)))
        blind = "" if about is None or asked.beside else number(first.chance(asked.suite, asked.group))
        rows.append([text(named(asked)), f"{asked.least:.2f}".replace("-", "−"), *cells, blind, n])
    columns = ["suite", "bar"]
    for chain in known:
        columns += [f"{text(chain.title)}, {counted(len(chain.seeds), 'seed')}", "reached"]
    columns += ["chance", "N"]
    told = f"Missed: {joined(missed)}." if missed else "Every bar that has been measured is reached."
    alone = " How much the tower alone gives to build on: by nearest images in the held-out style, it"
    by_itself = f"{alone} {joined(limits)}." if limits else ""
    return "\n".join([table(columns, f"lr{'rl' * len(known)}rr", rows), text(told + by_itself)])


def _limit(chain: Chain, asked: Bar) -> list[str]:
    """A clause on how much of what a missed bar asks for the tower of a chain sees by itself."""
    if asked.tower is None or asked.tower not in chain.tower:
        return []
    alone = chain.tower[asked.tower]
    share = f"{alone.value:.2f} [{alone.low:.2f}, {alone.high:.2f}]"
    return [f"{ALONE[asked.tower].format(share)} (for {named(asked)}, {chain.title})"]


def tower_alone(folder: Path) -> dict[str, Interval]:
    """What the tower of a chain tells apart by itself after its training; empty where that was not scored."""
    path = folder / TOWER_SCORES
    after = json.loads(path.read_bytes())["after"] if path.is_file() else {}
    return {what: Interval(s["value"], s["low"], s["high"], s["n"]) for what, s in after.items()}


def named(asked: Bar) -> str:
    """What a bar is about, in words."""
    suite = asked.suite if asked.group is None else f"{asked.suite}, {asked.group}"
    return suite if asked.beside is None else f"{suite}, minus {asked.beside}"


def by_stage(chain: Chain) -> str:
    """A table of every stage on every suite and group, the last one by strict rules too."""
    rows = []
    for suite, group, about in _rows(chain.seeds[0]):
        strict = of_seeds(chain.seeds, chain.last, suite, group, STRICT)
        rows.append(
            [
                _label(suite, group),
                *(_cell(chain.seeds, stage, suite, group) for stage in chain.stages),
                "" if strict is None else f"{strict.mean():.2f}",
                *about,
            ]
        )
    columns = ["suite", *map(text, chain.stages), f"{text(chain.last)}, strict", "chance", "N"]
    return table(columns, f"l{'r' * (len(columns) - 1)}", rows)


def by_seed(chain: Chain) -> str:
    """A table of the last stage of every seed on every suite and group."""
    rows = [
        [_label(suite, group), *(_cell([seed], chain.last, suite, group) for seed in chain.seeds), *about]
        for suite, group, about in _rows(chain.seeds[0])
    ]
    columns = ["suite", *(text(seed.chain) for seed in chain.seeds), "chance", "N"]
    return table(columns, f"l{'r' * (len(columns) - 1)}", rows)


def by_images(curve: ChainScores) -> str:
    """A table of suites and groups after each number of training images."""
    points = sorted(curve.stages, key=int)
    rows = [
        [_label(suite, group), *(_cell([curve], point, suite, group) for point in points), *about]
        for suite, group, about in _rows(curve)
    ]
    columns = ["suite", *(f"{number(int(point))} images" for point in points), "chance", "N"]
    return table(columns, f"l{'r' * (len(columns) - 1)}", rows)


def _rows(scores: ChainScores) -> list[tuple[str, str | None, list[str]]]:
    """Suites and their groups, with chance and number of items."""
    return [
        (suite, group, [number(scores.chance(suite, group)), number(len(about.rows(group)))])
        for suite, about in scores.suites.items()
        for group in (None, *about.groups)
    ]


def _label(suite: str, group: str | None) -> str:
    return text(suite if group is None else f"{suite}, {group}")


def _cell(seeds: Sequence[ChainScores], stage: str, suite: str, group: str | None) -> str:
    found = of_seeds(seeds, stage, suite, group)
    return "" if found is None else interval(crossed_mean(found))
