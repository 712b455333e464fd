"""The command line: help for a stranger, one sentence for what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlalign_utils import cli
from vlalign_utils.cli import app
from vlalign_utils.paths import ROOT

COMMANDS = ("run", "book", "pages", "toc", "serve", "tune", "plan", "zoo")


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_help_names_every_command_and_loads_no_torch():
    ask = "try: app(['--help'])\nfinally: print('torch' in sys.modules)"
    code = f"import sys; from vlalign_utils.cli import app\n{ask}"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f" {name} " in shown.stdout for name in COMMANDS)
    assert shown.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str):
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    assert f"{command} [OPTIONS]" in shown.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tune", "lava"), "no architecture 'lava' in architectures.yml; did you mean 'llava'?"),
        (("run", "--arch", "lava", "--nb", "04_causal"), "no architecture 'lava'"),
        (("run", "--arch", "llava", "--nb", "04_casual"), "there is no notebook '04_casual'"),
        (("zoo", "lava"), "lava"),
        (("plan", "no/such/folder/at-all"), "no/such/folder/at-all"),
        (
            ("run", "--arch", "llava", "--nb", "04_causal", "--params", "/no/such.yml"),
            "the parameter file /no/such.yml cannot be read: No such file or directory",
        ),
        (("run", "--arch", "llava", "--nb", "90_comparison"), "use --arch comparison for it alone"),
        (("book", "--archs", "llava,lava"), "no architecture 'lava' in architectures.yml"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: tuple[str, ...], sentence: str):
    shown = invoke(*arguments)
    assert shown.exit_code == 1
    assert sentence in shown.output
    assert "Traceback" not in shown.output
    assert len(shown.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [("book", "--cores", "0"), ("serve", "--port", "70000"), ("run", "--cell-timeout", "0")],
)
def test_a_number_that_cannot_be_is_refused(command: str, option: str, value: str):
    shown = invoke(command, option, value)
    assert shown.exit_code == 2
    assert option in shown.output


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "_toc.yml").mkdir()
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    shown = invoke("toc")
    assert shown.exit_code == 1
    assert re.fullmatch(r"Error: .*_toc\.yml cannot be written \(Is a directory\): .*\n", shown.output)


def test_the_table_of_contents_follows_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert invoke("toc").exit_code == 0
    assert (tmp_path / "_toc.yml").read_text() == (ROOT / "_toc.yml").read_text()


def test_pages_that_are_not_built_cannot_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    shown = invoke("serve")
    assert shown.exit_code == 1
    assert shown.output == f"Error: {tmp_path / '_build' / 'html'} holds no built book; run: make book\n"


@pytest.mark.slow
def test_plan_prints_a_band_beside_full_tuning(hub_folder: Path):
    asked = [
        "plan",
        str(hub_folder),
        "--band",
        "1",
        "3",
        "--batch-size",
        "2",
        "--tokens",
        "14",
        "--lora",
        "4",
    ]
    shown = invoke(*asked, "--no-checkpointing", "--memory", "8")
    assert shown.exit_code == 0, shown.output
    assert "1 x batch of 2 x 14 tokens, bfloat16, adamw, no checkpointing" in shown.output
    assert shown.output.splitlines()[1].split() == ["[1,", "3)", "full"]
    assert "full fits" in shown.output
    shown = invoke("plan", str(hub_folder), "--band", "3", "9")
    assert shown.exit_code == 1
    assert "trains layer 4, the model has 4 layers" in shown.output


@pytest.mark.slow
def test_plan_without_a_band_prints_full_tuning_alone(hub_folder: Path):
    shown = invoke("plan", str(hub_folder), "--tokens", "14")
    assert shown.output.splitlines()[1].split() == ["full"]
