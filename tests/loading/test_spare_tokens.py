"""A part's tokenizer with other names for its spare tokens: the same numbers for the same texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_processor
from tiny_parts import LANGUAGE, connector, write
from transformers import AutoTokenizer

from vlalign_utils.loading.assembled import plain_folder
from vlalign_utils.loading.parts import part_folder
from vlalign_utils.loading.spare_tokens import write_tokenizer
from vlalign_utils.loading.stage_file import read_stage

TEXT = "what is there ? <unk>"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A tokenizer whose special tokens are <pad>, <s>, </s> and <image>, beside another file."""
    tiny_processor().tokenizer.save_pretrained(tmp_path / "part")
    (tmp_path / "part" / "config.json").write_text("{}")
    return tmp_path / "part"


def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_a_renamed_token_has_the_number_of_the_spare_one(part: Path, tmp_path: Path) -> None:
    before = loaded(part)
    spare = before.convert_tokens_to_ids("<image>")
    (tmp_path / "own").mkdir()
    write_tokenizer(part, tmp_path / "own", {"<picture>": "<image>"})
    after = loaded(tmp_path / "own")
    assert after.convert_tokens_to_ids("<picture>") == spare
    assert len(after) == len(before)
    assert after(f"<picture>{TEXT}").input_ids == before(f"<image>{TEXT}").input_ids
    assert "<image>" not in after.get_vocab()
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_without_names_the_files_are_those_of_the_part(part: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write_tokenizer(part, tmp_path / "own", {})
    for path in (tmp_path / "own").iterdir():
        assert path.read_bytes() == (part / path.name).read_bytes()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"<picture>": "<spare>"}, r"'<spare>' is no special token of .*tokenizer\.json; it has .*<image>"),
        ({"<pad>": "<image>"}, "has a token '<pad>' already: give the spare one another name"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    part: Path, tmp_path: Path, tokens: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_tokenizer(part, tmp_path, tokens)


@pytest.mark.usefixtures("tiny_parts")
def test_a_stage_says_which_tokens_have_other_names(tmp_path: Path) -> None:
    stages = {
        name: write(
            tmp_path / "tiny" / name, seed=0, weights={"c.safetensors": connector(0.5)}, tokens=tokens
        )
        for name, tokens in (("base", {}), ("named", {"<picture>": "<image>"}))
    }
    assert "tokens" not in json.loads((stages["base"] / "stage.json").read_text())
    assert read_stage(stages["named"]).tokens == {"<picture>": "<image>"}
    plain, named = (plain_folder(stage) for stage in stages.values())
    assert loaded(plain).get_vocab() == loaded(part_folder(LANGUAGE)).get_vocab()
    spare = loaded(plain).convert_tokens_to_ids("<image>")
    assert loaded(named).convert_tokens_to_ids("<picture>") == spare
