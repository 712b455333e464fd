"""Parameters of a run: a notebook's defaults, those given and those filled in, all checked."""

import ast
import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from vlalign_utils.pipeline import parameter_rules
from vlalign_utils.pipeline.normalise import PageError, read_page
from vlalign_utils.pipeline.registry import DRAWN, Architecture

SET_BY_RUN = ("arch", "archs", "out_dir", "quick")  # parameters that the run itself fills in
TWO_STAGES = "two-stages"  # tag of the parameters cell of a notebook that compares the last two stages


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or whose value it cannot have."""


def read_notebook(name: str, root: Path) -> NotebookNode:
    """A notebook's source. Raises ParameterError naming the notebooks there are, or one that is damaged."""
    known = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if name not in known:
        have = ", ".join(known) or "none"
        raise ParameterError(f"there is no notebook '{name}' in notebooks/; it holds: {have}")
    try:
        return read_page(known[name])
    except PageError as error:
        raise ParameterError(str(error)) from None


def _parameters(notebook: NotebookNode, name: str) -> NotebookNode:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{name} must have exactly one cell tagged 'parameters'; it has {len(cells)}")
    return cells[0]


def defaults(notebook: NotebookNode, name: str) -> dict[str, Any]:
    """Names and default values of the one cell tagged `parameters`; all of them are Python literals."""
    found = {}
    for line in parsed(_parameters(notebook, name).source, f"{name}: the parameters cell").body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        try:
            if not isinstance(target, ast.Name) or value is None:
                raise ValueError
            found[target.id] = ast.literal_eval(value)
        except ValueError:
            raise ParameterError(
                f"{name}: '{ast.unparse(line)}' does not belong in the parameters cell; write name = literal"
            ) from None
    return found


def parsed(source: str, where: str) -> ast.Module:
    """Syntax tree of Python code. Raises ParameterError naming where it is and the line at fault."""
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ParameterError(f"{where} is not Python: line {error.lineno}, {error.msg}") from None


def check_stages(notebook: NotebookNode, name: str, arch: Architecture) -> None:
    """Raise ParameterError when the notebook compares two stages and the entry has one."""
    tags = _parameters(notebook, name).metadata.get("tags", [])
    if TWO_STAGES in tags and len(arch.stages) < 2:
        raise ParameterError(
            f"{name} compares two stages of a model, and {arch.name} has one, {', '.join(arch.stages)}: give "
            "its language model under 'base', or list its 'notebooks' without this one, in architectures.yml"
        )


def checked(given: dict[str, Any], known: dict[str, Any], name: str) -> dict[str, Any]:
    """The given parameters, each with the type of its default. Raises ParameterError naming the notebook."""
    allowed = [key for key in known if key not in SET_BY_RUN]
    for key in given:
        if key in SET_BY_RUN:
            raise ParameterError(f"{name}: '{key}' is filled in by the run; take it out of the parameters")
        if key not in known:
            close = get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(allowed)}"
            raise ParameterError(f"{name} has no parameter '{key}'; {hint}")
    return {key: _as_type_of(known[key], value, f"{name}: parameter '{key}'") for key, value in given.items()}


def _as_type_of(default: Any, value: Any, where: str) -> Any:
    """The value if it has the default's type; a number written as text (YAML reads 1e-3 so) is converted."""
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ParameterError(f"{where} must be a number such as {default}, not {value!r}")
        return number
    if isinstance(default, list | tuple):
        if isinstance(value, str):
            raise ParameterError(
                f"{where} must be a list, not the text {value!r}; write {value.strip()} unquoted"
            )
        if not isinstance(value, list | tuple):
            raise ParameterError(f"{where} must be a list such as {list(default)}, not {value!r}")
        return (
            [_as_type_of(default[0], item, f"{where}, item {i}") for i, item in enumerate(value)]
            if default
            else list(value)
        )
    if default is not None and type(value) is not type(default):
        raise ParameterError(
            f"{where} must be of type {type(default).__name__}, such as {default!r}, not {value!r}"
        )
    if type(value) is int and value < 0:
        raise ParameterError(f"{where} must not be negative, such as {default!r}, not {value!r}")
    return value


def effective(
    notebook: NotebookNode,
    name: str,
    filled: dict[str, Any],
    given: dict[str, Any],
    layers: Callable[[], int | None] = lambda: None,
    world: str = DRAWN,
) -> dict[str, Any]:
    """Every parameter of the run but `out_dir`: defaults, then what is given, then what the run fills in.

    `layers` gives the model's number of decoder layers, where a rule asks for it (None: not known); `world`
    is the one whose suites are asked. Raises ParameterError naming the parameter, what is expected and what
    it has.
    """
    known = defaults(notebook, name)
    missing = [key for key in ("out_dir", *filled) if key not in known]
    if missing:
        raise ParameterError(f"{name}: the parameters cell must also define {', '.join(missing)}")
    merged = {**known, **checked(given, known, name), **filled}
    del merged["out_dir"]
    depth = layers() if parameter_rules.needs_layers(merged) else None
    wrong = parameter_rules.fault(merged, math.inf if depth is None else depth, world)
    if wrong:
        raise ParameterError(f"{name}: {wrong}")
    return merged
