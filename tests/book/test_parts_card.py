"""Cards and abilities of chains from parts: every number from a record, of this project's chains too."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_parts

from vlalign_utils.book.pages import abilities, card, parts_card
from vlalign_utils.book.pages.parts_words import use
from vlalign_utils.data.things.splits import held_out_things
from vlalign_utils.paths import ROOT
from vlalign_utils.pipeline import registry
from vlalign_utils.zoo import bars
from vlalign_utils.zoo.scores_file import FILE

STAGES = ("base", "aligned", "tuned")
N = 20
# Suite: groups, and how many of its items are right in each stage.
RIGHT: dict[str, tuple[tuple[str, ...], tuple[int, int, int]]] = {
    "naming": (("trained styles", "held-out style"), (0, 8, 16)),
    "existence": ((), (10, 10, 18)),
    "text": ((), (10, 12, 8)),
}
ENTRIES = """
notebooks: [01_model]
comparison: 90_comparison
architectures:
  tiny: {title: "Tiny <b>one", description: D, model: zoo/tiny, stages: [base, aligned, tuned], world: things}
  tiny-1: {title: Again, description: D, model: zoo/tiny-1, stages: [tuned], world: things, repeats: tiny}
  lab: {title: Small, description: D, model: zoo/lab}
"""


def scores(chain: str, more: int = 0) -> dict[str, Any]:
    """A file of scores in which the first items are right; strictly one less."""
    suites, stages = {}, {stage: {} for stage in STAGES}
    for suite, (groups, right) in RIGHT.items():
        suites[suite] = {"metric": "answer", "n": N, "chance": 0.05, "groups": dict.fromkeys(groups, 0.05)}
        suites[suite]["group"] = [i % 2 for i in range(N)] if groups else []
        for stage, n in zip(STAGES, right, strict=True):
            lenient, strict = (("1" * k).ljust(N, "0") for k in (n + more, max(0, n + more - 1)))
            stages[stage][suite] = {"inputs": "x", "seconds": 1, "strict": strict, "lenient": lenient}
    return {"chain": chain, "world": "things", "dtype": "bfloat16", "suites": suites, "stages": stages}


def record(chain: str, tower: str, seed: int) -> dict[str, Any]:
    schedule = {"steps": 10, "batch_size": 4, "lr": 0.002}
    trained = {"steps": 10, "batch_size": 4, "examples": 40, "seconds": 150, "parameters_trained": 12345}
    trained |= {"curve": [[5, 1.0]], "device": "1 x CPU", "versions": {"torch": "2.13.0"}}
    stages = (["vision"] if tower == chain else []) + ["aligned", "tuned"]
    recipe = {"side": 160, "tower": tower, "rank": 8, "stages": dict.fromkeys(stages, schedule)}
    recipe |= {"teacher": "older"} if tower == chain else {}
    rounding = {"share": 0.75, "noise": 0.0625}
    return {
        "chain": chain,
        "seed": seed,
        "recipe": recipe,
        "stages": dict.fromkeys(stages, trained),
        "rounding": rounding,
    }


@pytest.fixture
def root(tmp_path: Path, tiny_parts: None) -> Path:
    """A chain with its scores, and the same from another seed."""
    (tmp_path / "architectures.yml").write_text(ENTRIES)
    for seed, name in enumerate(("tiny", "tiny-1")):
        folder = tmp_path / "zoo" / name
        write(folder / "tuned", seed)
        (folder / "record.json").write_text(json.dumps(record(name, "tiny", seed)))
        (folder / FILE).write_text(json.dumps(scores(name, 2 * seed)))
    question = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.01, "n": 99}
    tower = {"tower": "x", "before": {"name": question}, "after": {"name": {**question, "value": 0.55}}}
    (tmp_path / "zoo" / "tiny" / "tower_scores.json").write_text(json.dumps(tower))
    return tmp_path


def write(folder: Path, seed: int) -> None:
    tiny_parts.write(folder, seed=seed)


def cells(page: str, suite: str) -> list[list[str]]:
    """Rows of a page's tables that begin with a suite."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.replace("\\", "").splitlines()
        if line.startswith("|") and line.strip("| ").split(" |")[0].strip() == suite
    ]


def test_a_card_holds_what_its_records_say(root: Path) -> None:
    parts_card.write_all(registry.load(root), root)
    page = (root / "zoo" / "tiny" / "README.md").read_text()
    assert page.startswith(f"# tiny: model card\n\n{parts_card.BEGINNING}\n")
    assert "`LlavaForConditionalGeneration`" in page
    assert "SHA-256 `tiny-language`, licence MIT" in page
    assert "75% of the language model's weights" in page
    assert "is 6.2% of the weights" in page
    assert f"No stage is trained on {len(held_out_things())} of the things" in page
    assert cells(page, "tuned")[0][2:] == ["10", "4", "40", "12\u202f345", "0.002", "2"]
    assert cells(page, "name") == [
        ["name", "0.50 [0.40,\xa00.60]".replace(" ", "\xa0"), "0.55\xa0[0.40,\xa00.60]", "0.010", "99"]
    ]
    assert "(0.05 where" not in page
    assert "The tower also learned from that of `zoo/older`." in page
    again = (root / "zoo" / "tiny-1" / "README.md").read_text()
    assert "The tower is that of `zoo/tiny`." in again
    assert "| vision |" not in again


def test_a_chain_is_scored_with_its_seeds_and_a_seed_alone(root: Path) -> None:
    page = parts_card.render(root / "zoo" / "tiny", registry.load(root))
    assert "| tiny, 2 seeds | reached | chance | N |" in page
    # 18 and 20 of 20 items by `tuned`, 10 and 12 by the others.
    against, by_stage, by_seed = cells(page, "existence")
    assert (against[1], against[2][:4], against[3:]) == ("0.85", "0.95", ["yes", "0.05", "20"])
    assert by_stage[3] == against[2]
    assert [cell[:4] for cell in by_stage[1:5]] == ["0.55", "0.55", "0.95", "0.90"]
    assert [cell[:4] for cell in by_seed[1:3]] == ["0.90", "1.00"]
    # Ten right by `base` and eight by `tuned`, of twenty; two more of the second seed in both.
    text = cells(page, "text, minus base")[0]
    assert (text[1], text[2][:5], text[3:]) == ("−0.05", "−0.10", ["**no**", "", "20"])
    assert "Missed: text, minus base (tiny: −0.10 where −0.05 is asked)" in page.replace("\\", "")
    assert cells(page, "unseen")[0][1:] == ["0.45", "", "", "", ""]  # not scored
    assert len(cells(page, "naming, held-out style")) == 3
    assert "| tiny\\-1, 1 seed |" in parts_card.render(root / "zoo" / "tiny-1", registry.load(root))


def test_a_missed_bar_comes_with_what_the_tower_sees_by_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sentence = root / "zoo" / "tiny", "by nearest images in the held-out style"
    assert sentence not in parts_card.render(folder, registry.load(root))
    monkeypatch.setitem(RIGHT, "naming", (("trained styles", "held-out style"), (0, 8, 10)))
    for more, name in enumerate(("tiny", "tiny-1")):
        (root / "zoo" / name / FILE).write_text(json.dumps(scores(name, more)))
    alone = {"value": 0.55, "low": 0.4, "high": 0.6, "chance": 0.01, "n": 99}
    after = {"before": {"name, trained things": alone}, "after": {"name, trained things": alone}}
    (folder / "tower_scores.json").write_text(json.dumps(after))
    page = parts_card.render(folder, registry.load(root)).replace("\\", "")
    told = f"{sentence}, it names 0.55 [0.40, 0.60] of the trained things (for naming, held-out style, tiny)."
    assert told in page


def test_a_chain_without_scores_says_what_to_run(root: Path) -> None:
    (root / "zoo" / "tiny" / FILE).unlink()
    page = parts_card.render(root / "zoo" / "tiny", registry.load(root))
    assert "Not scored yet: `make zoo CHAIN=tiny` does it." in page


def test_a_chain_that_is_not_complete_has_no_card(root: Path) -> None:
    (root / "zoo" / "tiny-1" / "tuned" / "stage.json").unlink()
    assert parts_card.folders(root) == [root / "zoo" / "tiny"]


def test_the_page_shows_the_card_below_the_title_of_the_registry(root: Path, tmp_path: Path) -> None:
    entries = registry.load(root)
    parts_card.write_all(entries, root)
    card.write(entries.architecture("tiny"), tmp_path / "pages", root)
    page = (tmp_path / "pages" / "tiny.md").read_text()
    assert page.startswith("# Tiny &lt;b&gt;one: model card\n")
    assert "```{include} /zoo/tiny/README.md\n:start-after: -->\n```" in page
    assert ":alt: Loss against step for the stages vision, aligned, tuned;" in page
    assert (tmp_path / "pages" / "tiny-training.svg").is_file()


def test_abilities_are_those_of_models_of_the_world_of_things(root: Path, tmp_path: Path) -> None:
    entries = registry.load(root)
    (chain,) = abilities.chains(entries, root)
    assert [seed.chain for seed in chain.seeds] == ["tiny", "tiny-1"]
    abilities.write(entries, tmp_path / "pages", root)
    page = (tmp_path / "pages" / "abilities.md").read_text()
    assert "Tiny &lt;b&gt;one, 2 seeds" in page
    assert "## Tiny &lt;b&gt;one\n" in page
    assert cells(page, "naming, trained styles")[0][-2:] == ["0.05", "10"]
    for path in (root / "zoo").glob(f"*/{FILE}"):
        path.unlink()
    abilities.write(entries, tmp_path / "pages", root)
    assert (tmp_path / "pages" / "abilities.md").read_text() == "No model has been scored yet.\n"


def test_the_cards_in_the_repository_are_those_of_its_records() -> None:
    entries = registry.load()
    cards = {folder / "README.md": parts_card.render(folder, entries) for folder in parts_card.folders(ROOT)}
    outdated = [str(path) for path, page in cards.items() if not path.is_file() or path.read_text() != page]
    assert outdated == [], "run: python -m vlalign_utils cards"


def test_what_a_card_in_the_repository_calls_reached_is() -> None:
    """Means taken again from the items, by other code: a bar may be missed, if the card says so."""
    wrong = []
    for folder in parts_card.folders(ROOT):
        again = [e.model for e in registry.load().architectures.values() if e.repeats == folder.name]
        files = [ROOT / model / FILE for model in (f"zoo/{folder.name}", *again)]
        kept = [json.loads(path.read_text()) for path in files if path.is_file()]
        page = (folder / "README.md").read_text()
        for asked in bars.THINGS if kept else ():
            mean = sum(mean_of(scored, asked) for scored in kept) / len(kept)
            row = cells(page, abilities.named(asked))[0]
            shown = re.match(r"[−\d.]+", row[2])
            reached = "yes" if mean >= asked.least - 1e-9 else "**no**"
            if not shown or (shown[0], row[3]) != (f"{mean:.2f}".replace("-", "−"), reached):
                wrong.append((folder.name, row, mean))
    assert wrong == []


def mean_of(scored: dict[str, Any], asked: bars.Bar) -> float:
    """Mean over the items that a bar is about, of the last stage or beside another."""
    about, means = scored["suites"][asked.suite], []
    for stage in ("tuned", *([asked.beside] if asked.beside else [])):
        right = [
            float(score)
            for i, score in enumerate(scored["stages"][stage][asked.suite]["lenient"])
            if asked.group is None or list(about["groups"])[about["group"][i]] == asked.group
        ]
        assert len(right) >= 500
        means.append(sum(right) / len(right))
    return means[0] - (means[1] if asked.beside else 0)


@pytest.mark.slow
@pytest.mark.xdist_group("smollm")
def test_the_example_of_a_card_names_what_an_image_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example = use("smollm").partition("```python\n")[2].partition("```")[0]
    exec(example, {})
    question, answer, expected = re.fullmatch(r"(.*\?) (.*) \((.*)\)\n", capsys.readouterr().out).groups()
    assert question
    assert answer == expected
