"""The page of suites of both worlds: what each asks, items with their images, how every chain scores."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from vlalign_utils.book.pages.card import Record, read_record
from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import WORLDS, World, load_suite
from vlalign_utils.evidence import plots
from vlalign_utils.paths import write_atomic

SHOWN = 4  # items of each suite
WIDTH = 34  # characters of a line below an image
CHANCE_OF = 100  # items that the chance level of the table is the mean of
METRICS = {
    "answer": "the model's own (greedy) answer, word for word",
    "choice": "the likelier of two texts",
    "mean choice": "the likeliest of several texts, by the mean of its tokens",
    "caption": "share of attributes that the model's own description gets right",
    "cider": "CIDEr of the model's own description",
}
LENIENT = "the model's own (greedy) answer, in its own words"
WORDS = {  # of each world: its title, and what it holds
    "drawn": (
        "The drawn world",
        """Every image shows a form in a colour, a bar of a colour at a height, a word in an ink, or
handwriting, that no training image shows. An item has an image, a question, its one right answer, a group,
and a caption version: the same question about a caption in place of the image, which tells what tuning costs
the language model.""",
    ),
    "things": (
        "The world of real things",
        """Hundreds of real things, each drawn in several styles, with questions in everyday English. No
training image shows the things, the style, the combinations of things or the handwriting that are held out
here, or training never asks the question. Case, punctuation, articles and synonyms do not matter in an
answer. [](things_sources.md) names who drew the things.""",
    ),
}


def records(root: Path) -> list[Record]:
    """Training records of all chains in the repository, in order of their names."""
    found = (read_record(path) for path in sorted((root / "zoo").glob("*/record.json")))
    return [record for record in found if record is not None]


def write(folder: Path, root: Path) -> None:
    """Write `suites.md` and a figure of each suite into `folder`."""
    lines = [
        "# Suites",
        """Sets of questions, each after the kind of question that a public benchmark asks; all are drawn from
seeds, and held out. Images come from two worlds, and a model is asked about the one that it was trained on.
Vision-centric suites need the image and no fact; chance is what the best blind rule scores.""",
    ]
    for world in WORLDS.values():
        items = {name: load_suite(name, CHANCE_OF, world=world.name) for name in world.suites}
        title, held = WORDS[world.name]
        lines += [f"## {title}", held, _table(world, items)]
        lines += _chains(records(root)) if world.name == "drawn" else []
        for name in world.suites:
            lines += _suite(name, items[name][:SHOWN], world, folder)
    write_atomic(folder / "suites.md", "\n\n".join(lines) + "\n")


def label(world: World, name: str) -> str:
    """Name of a suite's heading and figure: suites of two worlds may have one name."""
    return f"suite-{name}" if world.name == "drawn" else f"suite-{world.name}-{name}"


def _table(world: World, items: Mapping[str, list[Item]]) -> str:
    metrics = METRICS | ({"answer": LENIENT} if world.lenient else {})
    rows = [
        [
            f"[{text(name)}](#{label(world, name)})",
            *(text(said) for said in (suite.mirrors, suite.asks, metrics[suite.metric])),
            f"{np.mean([item.chance for item in items[name]]):.2f}",
            "yes" if suite.vision_centric else "no",
        ]
        for name, suite in world.suites.items()
    ]
    return table(("suite", "after", "asks", "scored by", "chance", "vision-centric"), "llllrl", rows)


def _chains(chains: list[Record]) -> list[str]:
    if not chains:
        return []
    last = {record.chain: list(record.evaluation)[-1] for record in chains}
    rows = []
    for name in WORLDS["drawn"].suites:
        scores = [record.evaluation[last[record.chain]].get(name) for record in chains]
        some = next((score for score in scores if score is not None), None)
        if some is not None:
            cells = [
                "" if s is None else interval(s) + (" (at chance)" * (not s.informative)) for s in scores
            ]
            rows.append([text(name), number(some.n), f"{some.chance:.2f}", *cells])
    columns = ["suite", "N", "chance", *(text(record.chain) for record in chains)]
    times = [
        [
            text(record.chain),
            *(number(round(stage.seconds / 60, 1)) for stage in record.stages.values()),
            text(record.device),
        ]
        for record in chains
    ]
    return [
        "### How the chains score",
        """The last stage of every chain on held-out items, with 95 % intervals (Wilson's, or the bootstrap's
for captions). *At chance*: the interval of the score above chance reaches down to 0, and by this rule
chapters count no effect on this suite for this chain.""",
        table(columns, f"l{'r' * (len(chains) + 2)}", rows),
        "Minutes of training, by stage:",
        table(["chain", *map(text, chains[0].stages), "device"], f"l{'r' * len(chains[0].stages)}l", times),
    ]


def _suite(name: str, items: list[Item], world: World, folder: Path) -> list[str]:
    suite, own = world.suites[name], label(world, name)
    lines = [f"({own})=", f"### {text(name.capitalize())}", f"{text(suite.asks.capitalize())}."]
    shown = [item.image for item in items if item.image is not None]
    if not shown:
        rows = [[text(item.prompt), text(item.answer)] for item in items]
        return [*lines, table(("question", "answer"), "ll", rows)]
    # One line for each thing of a description.
    pair = all(len(item.choices) == 2 for item in items) and suite.metric != "answer"
    said = ["\nor\n".join([item.answer, *_others(item)] if pair else [item.answer]) for item in items]
    texts = [
        "\n".join(textwrap.fill(line, WIDTH) for line in f"{item.prompt}\n{one}".splitlines())
        for item, one in zip(items, [one.replace(", ", ",\n") for one in said], strict=True)
    ]
    figure = plots.images(shown, texts)
    figure.savefig(folder / f"{own}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    alternative = "; ".join(f"an image of {item.caption.strip('.')}" for item in items)
    note = "Of the two texts the first is true." if pair else "Below each question its answer."
    return [*lines, f":::{{figure}} {own}.png\n:alt: {text(alternative)}\n\n{note}\n:::"]


def _others(item: Item) -> list[str]:
    return [choice for choice in item.choices if choice != item.answer]
