import pytest
from small_notebooks import PARAMETERS, notebook

from vlalign_utils.pipeline.parameters import (
    ParameterError,
    check_stages,
    checked,
    defaults,
    effective,
    read_notebook,
)


def test_defaults_are_the_literals_of_the_parameters_cell():
    found = defaults(notebook(), "01_a")
    assert found["layers"] == [1, 2]
    assert list(found) == ["arch", "out_dir", "seed", "quick", "rate", "layers", "span"]


@pytest.mark.parametrize("line", ["seed = int(3)", "import os", "print(1)", "a.b = 1"])
def test_a_parameters_cell_holds_nothing_else(line):
    with pytest.raises(ParameterError, match=r"01_a: .* write name = literal"):
        defaults(notebook(PARAMETERS + "\n" + line), "01_a")


def test_there_is_one_parameters_cell():
    two = notebook()
    two.cells.append(two.cells[0])
    with pytest.raises(ParameterError, match="exactly one cell tagged 'parameters'; it has 2"):
        defaults(two, "01_a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, "01_a has no parameter 'sede'; did you mean 'seed'"),
        ({"zzz": 1}, "01_a has no parameter 'zzz'; it has: seed, rate, layers, span"),
        ({"seed": "1"}, "'seed' must be of type int, such as 0, not '1'"),
        ({"seed": True}, "'seed' must be of type int"),
        ({"seed": -1}, "'seed' must not be negative, such as 0, not -1"),
        ({"rate": float("nan")}, "'rate' must be a number such as 0.001, not nan"),
        ({"rate": "fast"}, "'rate' must be a number such as 0.001, not 'fast'"),
        ({"layers": "[1, 2]"}, r"'layers' must be a list, not the text '\[1, 2\]'; write \[1, 2\] unquoted"),
        ({"layers": [1, "2"]}, "'layers', item 1 must be of type int"),
        ({"layers": 3}, r"'layers' must be a list such as \[1, 2\], not 3"),
        ({"out_dir": "x"}, "'out_dir' is filled in by the run"),
        ({"arch": "x"}, "'arch' is filled in by the run"),
    ],
)
def test_a_wrong_parameter_is_explained(given, message):
    with pytest.raises(ParameterError, match=message):
        checked(given, defaults(notebook(), "01_a"), "01_a")


def test_numbers_that_yaml_reads_as_text_or_as_int_become_floats():
    known = defaults(notebook(), "01_a")
    assert checked({"rate": "1e-4", "span": [2, 4]}, known, "01_a") == {"rate": 1e-4, "span": [2, 4]}
    assert checked({"rate": 1}, known, "01_a") == {"rate": 1.0}


def test_effective_parameters_are_complete_and_name_no_folder():
    params = effective(notebook(), "01_a", {"arch": "x", "quick": True}, {"seed": 3})
    assert params == {"arch": "x", "seed": 3, "quick": True, "rate": 1e-3, "layers": [1, 2], "span": None}
    with pytest.raises(ParameterError, match="must also define archs"):
        effective(notebook(), "01_a", {"archs": "x"}, {})


def test_a_notebook_that_compares_two_stages_needs_two(llava):
    two = notebook()
    two.cells[0].metadata["tags"].append("two-stages")
    check_stages(two, "01_a", llava)
    one = llava.model_copy(update={"stages": ["tuned"]})
    check_stages(notebook(), "01_a", one)
    with pytest.raises(ParameterError, match=r"01_a compares two stages .* llava has one, tuned: give its"):
        check_stages(two, "01_a", one)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"nbformat": 4, "cells": 3}'])
def test_a_damaged_notebook_is_one_sentence(project, damage):
    (project / "notebooks" / "01_a.ipynb").write_bytes(damage)
    with pytest.raises(ParameterError, match=r"01_a\.ipynb is not a notebook") as caught:
        read_notebook("01_a", project)
    assert "\n" not in str(caught.value)


def test_code_that_is_no_python_is_named(project):
    with pytest.raises(ParameterError, match="01_a: the parameters cell is not Python: line 1"):
        defaults(notebook("seed = = 1"), "01_a")
