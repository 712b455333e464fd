"""claims.yml: what a claim must hold, and that every claim in it is complete."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from myst_parser.mdit_to_docutils.base import default_slugify

from vlalign_utils.book.pages.mathml import to_mathml
from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.claim_rules import ClaimError
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry

IDS = [
    "entry",
    "semantic-core",
    "bypass",
    "critical-work",
    "critical-view",
    "critical-weights",
    "strengthen",
    "band-tuning",
    "frozen-core",
    "adapter-depth",
    "compression-risk",
]
ON_TRAINING = {"band-tuning", "frozen-core", "adapter-depth"}
ENTRY: dict[str, Any] = {
    "says": "It holds.",
    "source": "paper",
    "references": ["key"],
    "statistic": "A mean.",
    "formula": "x",
    "against": "no difference",
    "depth": "j / L",
    "conditions": {"a": {"above": 0}, "b": {"above": 0, "guard": True}},
    "chapter": "04_causal",
    "heading": "Freezing tokens",
}


def write(folder: Path, data: object) -> Path:
    path = folder / "claims.yml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_claims_are_the_eleven() -> None:
    known = claim_rules.load()
    assert list(known) == IDS
    assert {name for name, claim in known.items() if claim.seeds >= 3} == ON_TRAINING
    assert {name for name, claim in known.items() if claim.source == "follow-up"} == set(IDS[-3:])


@pytest.mark.parametrize("name", IDS)
def test_a_claim_leads_somewhere(name: str) -> None:
    claim = claim_rules.claim(name)
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
    assert set(claim.references) <= set(keys)
    assert to_mathml(claim.formula, block=True).startswith("<math")
    assert claim.chapter in registry.load().notebooks
    notebook = nbformat.read(ROOT / "notebooks" / f"{claim.chapter}.ipynb", as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = [default_slugify(found) for found in re.findall(r"^#{2,3} (.+)$", prose, re.MULTILINE)]
    assert headings.count(default_slugify(claim.heading)) == 1


def test_regions_of_the_claims() -> None:
    """What decides, as the science has it; a change here is a change of what is claimed."""
    entry, bypass = claim_rules.claim("entry"), claim_rules.claim("bypass")
    assert entry.conditions["depth that entering images match best"].region() == "above 0.15, below 0.75"
    (main, guard) = bypass.conditions.values()
    assert (main.region(), guard.region()) == ("below 0, of interest from 0.05 on", "above 0")
    tuning = claim_rules.claim("band-tuning").conditions
    assert tuning["gain, band over full"].region() == "above 0.95"
    assert tuning["time, band over full"].region() == "below 1"
    said = {"above 0.15, below 0.75", main.region(), "above 0.95", "below 1"}
    others = {c.region() for claim in claim_rules.load().values() for c in claim.conditions.values()} - said
    assert others == {"above 0", *(f"above 0, of interest from {least} on" for least in (0.02, 0.05))}


def test_level_is_corrected_for_the_number_of_claims() -> None:
    assert claim_rules.level() == pytest.approx(1 - 0.05 / 11)
    assert claim_rules.level(1) == pytest.approx(0.95)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    (claim,) = claim_rules.load(write(tmp_path, {"claims": {"one": ENTRY}})).values()
    assert (claim.id, claim.seeds, claim.works) == ("one", 1, "")
    assert claim.conditions["b"].guard


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"says": ""}, r"one\.says"),
        ({"seeds": 0}, r"one\.seeds"),
        ({"seeds": "3"}, r"one\.seeds: Input should be a valid integer"),
        ({"source": "hearsay"}, r"one\.source"),
        ({"chapter": "causal"}, r"one\.chapter"),
        ({"sedes": 3}, r"one\.sedes: Extra inputs"),
        ({"references": []}, "names its source in `references` or `works`"),
        ({"conditions": {}}, "first condition is the main one"),
        ({"conditions": {"a": {"above": 0, "guard": True}}}, "first condition is the main one"),
        ({"conditions": {"a": {"guard": False}}}, r"one\.conditions\.a: .*needs `above`, `below` or both"),
        ({"conditions": {"a": {"above": 1, "below": 1}}}, r"one\.conditions\.a: .*region is empty"),
        ({"conditions": {"a": {"above": float("nan")}}}, r"one\.conditions\.a\.above"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {"claims": {"one": {**ENTRY, **change}}})
    with pytest.raises(ClaimError, match=message) as caught:
        claim_rules.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must hold a mapping 'claims'"),
        ({"claims": {}}, "at least one claim"),
        ({"claims": {"one": 1}}, "the claim 'one' must be a mapping"),
        ({"claims": {"One": ENTRY}}, r"One\.id"),
    ],
)
def test_what_is_no_file_of_claims(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(ClaimError, match=message):
        claim_rules.load(write(tmp_path, data))


def test_a_file_that_is_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match="cannot be read: No such file"):
        claim_rules.load(tmp_path / "claims.yml")
    (tmp_path / "other.yml").write_text("a: [")
    with pytest.raises(ClaimError, match="is not YAML"):
        claim_rules.load(tmp_path / "other.yml")


def test_an_unknown_claim_names_the_nearest() -> None:
    with pytest.raises(ClaimError, match="did you mean 'bypass'"):
        claim_rules.claim("bypas")
    with pytest.raises(ClaimError, match="it has: entry, "):
        claim_rules.claim("zzz")
