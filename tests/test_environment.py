"""environment.yml, pyproject.toml, requirements.lock and the Makefile must describe one environment."""

import re
import tomllib

import yaml

from vlalign_utils.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text().splitlines()


def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def test_conda_has_the_python_of_make():
    python = re.search(r"^PYTHON \?= python(\S+)$", MAKEFILE, re.MULTILINE)
    assert f"python={python[1]}" in conda()


def test_conda_takes_its_pins_from_the_lock_and_torch_from_the_makefile():
    torch = re.search(r"^TORCH := (\S+)$", MAKEFILE, re.MULTILINE)
    assert conda()[-1] == {"pip": ["-r requirements.lock", torch[1], "-e ."]}


def test_the_lock_pins_every_dependency_of_the_project_but_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {
        "book",
        "dev",
        "quantization",
    }  # the last needs a graphics card: make installs none
    wanted = [*project["dependencies"], *extras["book"], *extras["dev"]]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in wanted}
    locked = {line.split("==")[0] for line in LOCK}
    assert names - locked == {"torch"}
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+", line) for line in LOCK)


def test_what_make_check_leaves_out_make_test_runs():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    kinds = {line.split(":")[0] for line in settings["markers"]} - {"xdist_group", "slow_except"}
    fast, *others = re.findall(r"-m pytest .*-m (\".+\"|\w+)$", MAKEFILE, re.MULTILINE)
    assert set(re.findall(r"not (\w+)", fast)) == kinds
    assert {kind for chosen in others for kind in chosen.strip('"').split(" or ")} == kinds
