"""The page of families: what the driver found out about one tiny random model of each type."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlalign_utils.book.pages.markdown import number, table, text
from vlalign_utils.driver.capabilities import MEANINGS
from vlalign_utils.evidence.results import ResultsError
from vlalign_utils.evidence.strict import Closed
from vlalign_utils.paths import write_atomic

FILE = "book/families.json"
SHOWN = {  # columns of the matrix, short so that it fits; the replay is exact in every row
    "image_positions": "places",
    "whole_state": "whole",
    "causal": "causal",
    "padding": "pads",
    "freeze": "freeze",
    "knockout": "cut",
    "cross_off": "cross",
    "rows": "batch",
    "suffix": "suffix",
}
WORDS = {True: "yes", False: "–", None: "?"}
GROUPS = {
    "decoder": "image features take positions of a causal decoder",
    "inner": "the same, through a Q-Former or in a language model inside",
    "bidirectional": "image tokens attend both ways",
    "early": "discrete image codes or raw patches",
    "deepstack": "vision features are also added between layers",
    "shared": "layers share keys, values or streams",
    "moe": "mixture of experts",
    "hybrid": "layers that mix tokens without attention",
    "cross": "cross-attention or encoder-decoder",
}


class Family(Closed):
    """One model type: its group, class, decoder layers, and what was found."""

    group: str
    model: str
    layers: int
    whole_from: int
    findings: dict[str, tuple[bool | None, str]]


class Families(Closed):
    """The record of all trials, with which transformers, and what could not be built."""

    transformers: str
    families: dict[str, Family]
    unbuilt: dict[str, str]


def load(root: Path) -> Families:
    """The record. Raises ResultsError naming the file when it is missing or malformed."""
    path = root / FILE
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return Families.model_validate(data)
    except (FileNotFoundError, ValueError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise ResultsError(f"{path} is not a record of families ({why}); run: make families") from None


def write(folder: Path, root: Path) -> None:
    """Write `families.md` into `folder`."""
    found = load(root)
    tried = number(len(found.families))
    exact = number(sum(family.findings["replay"][0] is True for family in found.families.values()))
    lines = [
        "# Families",
        f"""The driver has no line about any family. What it can do with a model it finds out by trying, when
the model is loaded (`vlm.capabilities()`). Here it was tried on {tried} model types of transformers
{text(found.transformers)}, each built tiny and random from its configuration. In {exact} of them the replay
is exact, from every layer.""",
        table(
            ("column", "in code", "what was tried"),
            "lll",
            [[text(SHOWN[k]), f"`{k}`", text(MEANINGS[k])] for k in SHOWN],
        ),
        """“–” means that it does not hold: an analysis that needs it then raises an error instead of drawing
a curve. “?” means that the trial could not tell.""",
    ]
    for group, meaning in GROUPS.items():
        rows = [
            [text(name), *(WORDS[family.findings[what][0]] for what in SHOWN)]
            for name, family in found.families.items()
            if family.group == group
        ]
        lines += [f"## {text(meaning[0].upper() + meaning[1:])}"]
        lines += [table(("type", *SHOWN.values()), "l" * (1 + len(SHOWN)), rows)]
    refused = [
        [text(name), text(family.findings["knockout"][1])]
        for name, family in found.families.items()
        if family.findings["knockout"][0] is not True and family.group != "cross"
    ]
    lines += [
        "## Where knockout is refused",
        """Attention between image and text can be cut there, or some of it, but what the image holds still
gets through, or a token that is left without keys is given others.""",
        table(("type", "what was seen"), "ll", refused),
        "## What could not be tried",
        table(("type", "why"), "ll", [[text(name), text(why)] for name, why in found.unbuilt.items()]),
    ]
    write_atomic(folder / "families.md", "\n\n".join(lines) + "\n")
