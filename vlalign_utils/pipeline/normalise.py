"""Make an executed notebook the same bytes at every rerun, and fit for a page."""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from nbformat import NotebookNode
from nbformat.v4 import reads
from pydantic import BaseModel, JsonValue, ValidationError

WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT_METADATA = ("tags", "mystnb")
MAX_BYTES = 400_000


class _Metadata(BaseModel):
    tags: list[str] = []


class _Cell(BaseModel):
    cell_type: Literal["code", "markdown", "raw"]
    source: str | list[str]
    metadata: _Metadata
    outputs: list[dict[str, JsonValue]] = []


class _Page(BaseModel):
    """Schema of a notebook that can be read, hashed and built."""

    nbformat: Literal[4]
    nbformat_minor: int
    metadata: dict[str, JsonValue]
    cells: list[_Cell]


class PageError(ValueError):
    """An executed notebook that cannot become a page."""


def normalise(notebook: NotebookNode, paths: dict[str, str]) -> NotebookNode:
    """Clean the notebook in place and return it.

    Drops run times, widget outputs, stderr and the run's own output folder; writes the values in use into the
    one cell of parameters; keeps what a carriage return would have left on the screen; numbers cells in
    order; replaces the machine's `paths` in text.
    """
    notebook.cells = _with_values_in_use(notebook.cells)
    notebook.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python"},
    )
    notebook.nbformat_minor = 5
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA})
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _outputs(cell.outputs, count, paths)
    return notebook


def _with_values_in_use(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells with Papermill's injected one merged into the parameters before it: each stands once."""
    kept: list[NotebookNode] = []
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" not in tags:
            kept.append(cell)
            continue
        known = next((other for other in kept if "parameters" in other.metadata.get("tags", [])), None)
        if known is None:
            raise PageError("values were injected into a notebook that has no cell tagged 'parameters'")
        known.source = merged(known.source, cell.source)
    return kept


def merged(defaults: str, injected: str) -> str:
    """Parameters with the injected values in place of their defaults, comments kept; `out_dir` stays empty.

    Raises PageError for an injected name that the parameters do not have.
    """
    values = {
        target.id: ast.get_source_segment(injected, line.value)
        for line in ast.parse(injected).body
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
    }
    values.pop("out_dir", None)
    lines = defaults.encode().splitlines()  # positions in a syntax tree count bytes
    for line in reversed(ast.parse(defaults).body):
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        given = values.pop(target.id, None) if isinstance(target, ast.Name) else None
        value = getattr(line, "value", None)
        if given is None or value is None:
            continue
        first, last = value.lineno - 1, value.end_lineno
        before, after = lines[first][: value.col_offset], lines[last - 1][value.end_col_offset :]
        lines[first:last] = [before + given.encode() + after]
    if values:
        raise PageError(f"injected parameters that the notebook does not have: {', '.join(values)}")
    return b"\n".join(lines).decode()


def _outputs(outputs: list[NotebookNode], count: int, paths: dict[str, str]) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif WIDGET in output.get("data", {}):
            continue
        if "execution_count" in output:
            output.execution_count = count
        output.pop("transient", None)
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = _replace(re.sub(r"^.*\r(?=[^\n])", "", output.text, flags=re.MULTILINE), paths)
        elif "data" in output:
            output.data = NotebookNode({mime: _replace(body, paths) for mime, body in output.data.items()})
    return kept


def _replace(body: Any, paths: dict[str, str]) -> Any:
    """Text without the machine's paths; other bodies (JSON, an image's base64) have none."""
    if isinstance(body, str):
        for path, plain in paths.items():
            body = body.replace(path, plain)
    return body


def read_page(path: Path) -> NotebookNode:
    """A notebook, checked to be whole. Raises PageError in one sentence that names the file."""
    try:
        text = path.read_text(encoding="utf-8")
        _Page.model_validate_json(text)
    except OSError as error:
        raise PageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PageError(f"{path} is not a notebook: it is not text in UTF-8") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PageError(f"{path} is not a notebook in format 4: {field}: {first['msg']}") from None
    return reads(text)


def digest(notebook: NotebookNode) -> str:
    """sha256 of a normalised notebook, without the outputs of cells tagged `timing`."""
    cells = []
    for cell in notebook.cells:
        timed = "timing" in cell.metadata.get("tags", [])
        cells.append({**cell, "outputs": None} if timed else cell)
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def check_size(notebook: NotebookNode, text: str, name: str) -> None:
    """Raise PageError, naming the largest output, when a page would weigh more than 400 kB."""
    size = len(text.encode())
    if size <= MAX_BYTES:
        return
    bodies = [
        (len(json.dumps(body)), f"cell {number} ({mime})")
        for number, cell in enumerate(notebook.cells, 1)
        for output in cell.get("outputs", [])
        for mime, body in ({"text": output.text} if output.output_type == "stream" else output.data).items()
    ]
    largest, where = max(bodies, default=(0, "none"))
    raise PageError(
        f"{name} weighs {size // 1000} kB executed, over the {MAX_BYTES // 1000} kB a page may have; "
        f"its largest output is {largest // 1000} kB in {where}"
    )


def machine_paths(root: Path, scratch: Path) -> dict[str, str]:
    """Paths of this machine and what stands for them on a page, longest first."""
    found = {f"{scratch}/": "", str(scratch): ".", f"{root}/": "", str(root): ".", str(Path.home()): "~"}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))
