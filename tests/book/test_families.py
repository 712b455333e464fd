"""The page of families: the matrix, the reasons, and a record that is missing or malformed."""

import json
from pathlib import Path

import pytest

from vlalign_utils.book.pages import families
from vlalign_utils.driver.capabilities import MEANINGS
from vlalign_utils.evidence.results import ResultsError


def record(**changed: object) -> dict[str, object]:
    findings = {name: [True, "fine"] for name in MEANINGS} | {"knockout": [False, "0.5 is *left*"]}
    family = {"group": "hybrid", "model": "M", "layers": 4, "whole_from": 0, "findings": findings}
    return {
        "transformers": "5.0",
        "families": {"some_vl": family},
        "unbuilt": {"other": "No decoder."},
        **changed,
    }


def put(root: Path, data: object) -> None:
    (root / "book").mkdir(exist_ok=True)
    (root / families.FILE).write_text(json.dumps(data))


def test_the_page_shows_what_was_found_and_why_not(tmp_path: Path) -> None:
    put(tmp_path, record())
    families.write(tmp_path, tmp_path)
    page = (tmp_path / "families.md").read_text()
    assert "tried on 1 model types of transformers\n5.0" in page
    assert "| some\\_vl | yes | yes | yes | yes | yes | – | yes | yes | yes |" in page
    assert "| some\\_vl | 0.5 is \\*left\\* |" in page
    assert "| other | No decoder. |" in page


@pytest.mark.parametrize("data", [[], record(families={"a": {}}), record(unbuilt=None)])
def test_a_malformed_record_says_how_to_make_it(tmp_path: Path, data: object) -> None:
    put(tmp_path, data)
    with pytest.raises(ResultsError, match=r"families.json is not a record of families .*make families"):
        families.load(tmp_path)


def test_a_missing_record_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="make families"):
        families.load(tmp_path)
