"""The command line: help for a stranger, one sentence for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

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
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: tuple[str, ...], sentence: str):
    shown = invoke(*arguments)
    assert shown.exit_code == 1
    assert sentence in shown.output
    assert "Traceback" not in shown.output
    assert len(shown.output.strip().splitlines()) == 1


def test_no_cores_are_refused():
    shown = invoke("book", "--cores", "0")
    assert shown.exit_code == 2
    assert "--cores" in shown.output


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


def test_plan_without_a_band_prints_full_tuning_alone(hub_folder: Path):
    shown = invoke("plan", str(hub_folder), "--tokens", "14")
    assert shown.output.splitlines()[1].split() == ["full"]
