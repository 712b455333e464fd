"""Model cards: one generated page per architecture. Every number comes from the chain's record.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlalign_utils.book.pages.markdown import code, interval, number, table, text
from vlalign_utils.evidence import plots
from vlalign_utils.evidence.results import ResultsError
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Architecture
from vlalign_utils.zoo.bars import MEAN, VISION_CENTRIC, bar, mean_of_seeing

CARD = "README.md"
YES_NO = {True: "yes", False: "**no**"}
TRAINS = {
    "vision": "vision tower, by naming what parts of images show",
    "base": "language model, on text alone",
    "aligned": "connector (and layers that only images use), on captions of images",
    "tuned": "connector and language model, on questions about images",
}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Made(_Lenient):
    """What tells whether a chain was trained from scratch: the recipe of one from parts names a tower."""

    recipe: dict[str, Any] = Field(default_factory=dict)


class Score(_Lenient):
    """Accuracy of one stage on one suite."""

    value: float
    low: float
    high: float
    n: int
    chance: float
    informative: bool


class Stage(_Lenient):
    """How one stage was trained; `curve` holds (step, mean loss)."""

    steps: int
    examples: int
    batch_size: int
    seconds: float
    parameters_trained: int
    curve: list[tuple[int, float]]


class Record(_Lenient):
    """The record that training wrote beside the checkpoints."""

    chain: str
    seed: int
    versions: dict[str, str]
    device: str
    stages: dict[str, Stage]
    evaluation: dict[str, dict[str, Score]]
    data: dict[str, Any]


def read_record(path: Path) -> Record | None:
    """The record, or None for a model that was not trained from scratch here.

    Raises ResultsError naming the field.
    """
    if not path.is_file():
        return None
    written = path.read_text(encoding="utf-8")
    try:
        of_parts = "tower" in _Made.model_validate_json(written).recipe
        return None if of_parts else Record.model_validate_json(written)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ResultsError(f"{path} is not a valid training record: {field}: {first['msg']}") from None


def write(arch: Architecture, folder: Path, root: Path) -> None:
    """Write `<arch>.md` and its figure into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = root / arch.model / CARD
    record = read_record(root / arch.model / "record.json")
    lines = [f"# {text(arch.title)}: model card", text(arch.description), f"Loaded from {text(arch.model)}."]
    if own.is_file():  # written with the model, its heading first
        stages = {name: Stage.model_validate(one) for name, one in _stages(root / arch.model).items()}
        curves(stages, folder / f"{arch.name}-training.svg")
        lines += [f"```{{include}} /{arch.model}/{CARD}\n:start-after: -->\n```", _curves(arch, stages)]
    elif record is None:
        lines.append("This model was not trained by this project; its training is not on record here.")
    else:
        curves(record.stages, folder / f"{arch.name}-training.svg")
        lines += _scores(record) + _training(arch, record)
    write_atomic(folder / f"{arch.name}.md", "\n\n".join(lines) + "\n")


def _scores(record: Record) -> list[str]:
    stages = list(record.evaluation)
    suites = record.evaluation[stages[-1]]
    rows = []
    for name, last in suites.items():
        scores = [interval(record.evaluation[stage][name]) for stage in stages]
        wanted = bar(name)
        reached = last.informative if wanted is None else last.value >= wanted
        shown = "chance" if wanted is None else f"{wanted:.2f}"
        rows.append([text(name), *scores, number(last.n), f"{last.chance:.2f}", shown, YES_NO[reached]])
    if set(VISION_CENTRIC) <= set(suites):
        means = [
            mean_of_seeing({name: score.value for name, score in record.evaluation[stage].items()})
            for stage in stages
        ]
        cells = [f"{mean:.2f}" for mean in means]
        rows.append(["vision-centric, mean", *cells, "", "", f"{MEAN:.2f}", YES_NO[means[-1] >= MEAN]])
    return [
        "## Answers",
        "Score on held-out items of each [suite](suites.md), with a 95 % interval. The bar is what the last "
        "stage should reach; where it is chance, the score has to be clearly above it.",
        table(["suite", *map(text, stages), "N", "chance", "bar", "met"], f"l{'r' * len(stages)}rrrl", rows),
    ]


def _training(arch: Architecture, record: Record) -> list[str]:
    trained = [
        [
            text(name),
            text(TRAINS.get(name, "")),
            *(number(n) for n in (stage.steps, stage.examples, stage.batch_size, stage.parameters_trained)),
            number(round(stage.seconds / 60, 1)),
        ]
        for name, stage in record.stages.items()
    ]
    columns = ["stage", "what learns", "steps", "examples", "batch", "parameters", "minutes"]
    data = [[text(name.replace("_", " ")), number(size)] for name, size in record.data.items()]
    return [
        "## How it was trained",
        f"From scratch, with seed {record.seed}, one stage after the other, by "
        f"{code(f'make zoo CHAIN={Path(arch.model).name}')}, on {text(record.device)}.",
        table(columns, "llrrrrr", trained),
        _curves(arch, record.stages),
        "## Data sizes",
        table(["what", "number"], "lr", data),
        "## Versions",
        table(["package", "version"], "ll", [[text(name), text(v)] for name, v in record.versions.items()]),
    ]


def _stages(folder: Path) -> dict[str, Any]:
    """Records of the stages of a chain from parts."""
    stages: dict[str, Any] = json.loads((folder / "record.json").read_bytes())["stages"]
    return stages


def _curves(arch: Architecture, stages: Mapping[str, Stage]) -> str:
    """The figure of training curves."""
    names = ", ".join(map(text, stages))
    return (
        f":::{{figure}} {arch.name}-training.svg\n:alt: Loss against step for the stages {names}; every "
        "curve is drawn on its own axes.\n\nTraining loss of each stage, averaged between points.\n:::"
    )


def curves(stages: Mapping[str, Stage], path: Path) -> None:
    """Draw the training curves, one panel per stage, two side by side so that a phone shows them too."""
    figure, axes = plots.figure(columns=2, rows=-(-len(stages) // 2), height=2.3)
    for unused in axes[len(stages) :]:
        unused.remove()
    for ax, (name, stage) in zip(axes, stages.items(), strict=False):
        steps, losses = zip(*stage.curve, strict=True)
        ax.plot(steps, losses, color=plots.look(name).colour)
        ax.set_title(name, parse_math=False)
        ax.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
