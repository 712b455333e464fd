"""Model cards of chains from pretrained parts: `zoo/<chain>/README.md`, written from the records there."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlalign_utils.book.pages import abilities, scale
from vlalign_utils.book.pages.abilities import Chain
from vlalign_utils.book.pages.card import CARD, Stage
from vlalign_utils.book.pages.markdown import code, interval, number, table
from vlalign_utils.book.pages.parts_words import about_data, limits, use
from vlalign_utils.evidence.findings import joined
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.loading.parts import find_part
from vlalign_utils.loading.stage_file import STAGE, read_stage
from vlalign_utils.paths import write_atomic
from vlalign_utils.pipeline.registry import Registry
from vlalign_utils.zoo.parts_build import RECORD, TOWER_SCORES
from vlalign_utils.zoo.recipe import STAGES
from vlalign_utils.zoo.scores_file import CURVE, FILE, ChainScores, read_scores

BEGINNING = "<!-- Written from the records beside it, by make zoo: what is changed here is lost. -->"
TRAINS = {
    "vision": "vision tower, or its last part, by naming what parts of images show",
    "aligned": "connector, on captions of images",
    "tuned": "connector, and LoRA in every linear layer of the language model, on questions about images",
}


def folders(root: Path) -> list[Path]:
    """Folders of the chains from parts that are complete, in order of their names."""
    last = sorted((root / "zoo").glob(f"*/{STAGES[-1]}/{STAGE}"))
    return [path.parents[1] for path in last if (path.parents[1] / RECORD).is_file()]


def write_all(entries: Registry, root: Path) -> None:
    """Write the card of every chain from parts: the scores of one stand in those of its other seeds, too."""
    for folder in folders(root):
        write_atomic(folder / CARD, render(folder, entries))


def render(folder: Path, entries: Registry) -> str:
    """Text of a chain's card. Raises ValueError or ResultsError for a stage or scores that are damaged."""
    record = json.loads((folder / RECORD).read_bytes())
    parts = [
        f"# {folder.name}: model card",
        BEGINNING,
        _about(folder, record),
        "## Parts",
        *_parts(folder, record),
        "## Data",
        about_data(),
        "## Training",
        *_training(folder, record),
        "## Intended use",
        use(folder.name),
        "## Limits",
        limits(record["recipe"]["side"]),
        "## Scores",
        *_scores(folder, entries),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _about(folder: Path, record: dict[str, Any]) -> str:
    sizes, side = scale.of_folder(folder, STAGES[-1]), record["recipe"]["side"]
    config = json.loads((folder / STAGES[-1] / "config.json").read_bytes())
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config["model_type"]]
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return (
        f"{joined([find_part(name).origin for name in _names(folder)])}, in the class {code(kind)} of "
        f"transformers: {number(sizes.weights)} weights, {sizes.layers} decoder layers, a vocabulary of "
        f"{number(sizes.tokens)} tokens, images of {side} x {side} pixels. Its stages are "
        f"{joined(list(STAGES))}. This folder holds what was trained, {stored / 2**20:.0f} MiB; the rest "
        f"is taken from the packages below. All that is random comes from the seed {record['seed']}."
    )


def _names(folder: Path) -> list[str]:
    return list(dict.fromkeys(source.part for source in read_stage(folder / STAGES[-1]).parts.values()))


def _parts(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    known = [find_part(name) for name in _names(folder)]
    yield "\n".join(
        f"- {part.origin}: {code(part.file)} in the Python package {code(part.package)} {part.version}, "
        f"SHA-256 {code(part.sha256)}, licence {part.licence}"
        for part in known
    )
    if rounded := record.get("rounding"):
        yield (
            f"{rounded['share']:.0%} of the language model's weights, all but the embeddings, were rounded "
            "to four bits before they were published. Their error, estimated from the steps between values "
            f"that are left, is {rounded['noise']:.1%} of the weights (root mean squares), in every stage."
        )
    yield "What this project trained has the licence Apache-2.0, too."


def _training(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, raw in record["stages"].items():
        stage, schedule = Stage.model_validate(raw), record["recipe"]["stages"][name]
        sizes = (stage.steps, stage.batch_size, stage.examples, stage.parameters_trained)
        minutes = number(round(stage.seconds / 60))
        rows.append([name, TRAINS[name], *map(number, sizes), f"{schedule['lr']:g}", minutes])
    devices = list(dict.fromkeys(raw["device"] for raw in record["stages"].values()))
    tower, teacher = record["recipe"]["tower"], record["recipe"].get("teacher")
    other = "" if tower == folder.name else f" The tower is that of {code(f'zoo/{tower}')}."
    other += f" The tower also learned from that of {code(f'zoo/{teacher}')}." if teacher else ""
    yield (
        f"By {code(f'make zoo CHAIN={folder.name}')} on {joined(devices)}, in bfloat16, with float32 copies "
        f"of what is trained. LoRA has rank {record['recipe']['rank']}.{other} Minutes are by the clock."
    )
    columns = ["stage", "what is trained", "steps", "batch", "images", "parameters", "rate", "minutes"]
    yield table(columns, "llrrrrrr", rows)
    versions = record["stages"][STAGES[-1]]["versions"]
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    if (folder / TOWER_SCORES).is_file():
        yield from _tower(json.loads((folder / TOWER_SCORES).read_bytes()))


def _tower(scores: dict[str, Any]) -> Iterator[str]:
    rows = []
    for what, after in scores["after"].items():
        both = [Interval(s["value"], s["low"], s["high"], s["n"]) for s in (scores["before"][what], after)]
        cells = [interval(one) for one in both]
        rows.append([what, *cells, f"{after['chance']:.3f}", number(after["n"])])
    yield "What the tower alone tells apart in the held-out style, by nearest images:"
    yield table(["question", "before", "after", "chance", "N"], "lrrrr", rows)


def _scores(folder: Path, entries: Registry) -> Iterator[str]:
    own = read_scores(folder / FILE)
    if own is None:
        yield f"Not scored yet: {code(f'make zoo CHAIN={folder.name}')} does it."
        return
    curve = read_scores(folder / CURVE)
    seeds = [own, *_again(folder, entries)]
    chain = Chain(folder.name, list(STAGES), seeds, curve, abilities.tower_alone(folder))
    yield f"{abilities.RULES} The stages were scored in {own.dtype}."
    yield abilities.against_bars([chain])
    yield abilities.by_stage(chain)
    if len(chain.seeds) > 1:
        yield abilities.by_seed(chain)
    if chain.curve is not None:
        yield abilities.LEARNING
        yield abilities.by_images(chain.curve)


def _again(folder: Path, entries: Registry) -> Sequence[ChainScores]:
    """Scores of the chains that repeat this one from other seeds."""
    again = [arch.model for arch in entries.architectures.values() if arch.repeats == folder.name]
    found = (read_scores(folder.with_name(Path(model).name) / FILE) for model in again)
    return [scores for scores in found if scores is not None]
