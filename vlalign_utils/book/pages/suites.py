"""The page of suites: what each asks, items with their images, and how every chain scores."""

from pathlib import Path

from matplotlib import pyplot as plt

from vlalign_utils.book.pages.card import Record, read_record
from vlalign_utils.book.pages.markdown import interval, number, table, text
from vlalign_utils.data.suites import SUITES
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.evidence import plots
from vlalign_utils.paths import write_atomic

SHOWN = 4  # items of each suite
METRICS = {
    "answer": "the model's own (greedy) answer, word for word",
    "choice": "the likelier of two texts",
    "caption": "share of attributes that the model's own description gets right",
}


def records(root: Path) -> list[Record]:
    """Training records of all chains in the repository, in order of their names."""
    found = (read_record(path) for path in sorted((root / "zoo").glob("*/record.json")))
    return [record for record in found if record is not None]


def write(folder: Path, root: Path) -> None:
    """Write `suites.md` and a figure of each suite into `folder`."""
    chains = records(root)
    lines = [
        "# Suites",
        """Ten sets of questions, each after the kind of question that a public benchmark asks. All are drawn
from seeds, and held out: every image shows a form in a colour, a bar of a colour at a height, a word in
an ink, or handwriting, that no training image shows. An item has an image, a question, its one right
answer, a group, and a caption version: the same question about a caption in place of the image,
which tells what tuning costs the language model.""",
        table(
            ("suite", "after", "asks", "scored by", "vision-centric"),
            "lllll",
            [
                [
                    f"[{text(name)}](#suite-{name})",
                    *(text(said) for said in (suite.mirrors, suite.asks, METRICS[suite.metric])),
                    "yes" if suite.vision_centric else "no",
                ]
                for name, suite in SUITES.items()
            ],
        ),
        """Vision-centric suites need the image and no fact. A new suite is one file in
`vlalign_utils/data/suites/` and its name in the registry there.""",
        *_chains(chains),
    ]
    for name in SUITES:
        lines += _suite(name, folder)
    write_atomic(folder / "suites.md", "\n\n".join(lines) + "\n")


def _chains(chains: list[Record]) -> list[str]:
    if not chains:
        return []
    last = {record.chain: list(record.evaluation)[-1] for record in chains}
    rows = []
    for name in SUITES:
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
        "## How the chains score",
        """The last stage of every chain on held-out items, with 95 % intervals (Wilson's, or the bootstrap's
for captions). *At chance*: the interval of the score above chance reaches down to 0, and by this rule
chapters count no effect on this suite for this chain.""",
        table(columns, f"l{'r' * (len(chains) + 2)}", rows),
        "Minutes of training, by stage:",
        table(["chain", *map(text, chains[0].stages), "device"], f"l{'r' * len(chains[0].stages)}l", times),
    ]


def _suite(name: str, folder: Path) -> list[str]:
    suite = SUITES[name]
    items = load_suite(name, SHOWN)
    lines = [f"(suite-{name})=", f"## {text(name.capitalize())}", f"{text(suite.asks.capitalize())}."]
    shown = [item.image for item in items if item.image is not None]
    if not shown:
        rows = [[text(item.prompt), text(item.answer)] for item in items]
        return [*lines, table(("question", "answer"), "ll", rows)]
    # One line for each thing of a description.
    said = ["\nor\n".join(item.choices if item.metric == "choice" else [item.answer]) for item in items]
    said = [one.replace(", ", ",\n") for one in said]
    texts = [f"{item.prompt}\n{one}" for item, one in zip(items, said, strict=True)]
    figure = plots.images(shown, texts)
    figure.savefig(folder / f"suite-{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    alternative = "; ".join(f"an image of {item.caption.strip('.')}" for item in items)
    note = (
        "Of the two texts the first is true."
        if suite.metric == "choice"
        else "Below each question its answer."
    )
    return [*lines, f":::{{figure}} suite-{name}.png\n:alt: {text(alternative)}\n\n{note}\n:::"]
