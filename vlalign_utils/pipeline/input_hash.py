"""The hash of the inputs of a run: code, versions, parameters, rules and the model."""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grimp
from nbformat import NotebookNode

from vlalign_utils import PLACES
from vlalign_utils.evidence import claim_rules
from vlalign_utils.evidence.results import ResultsError, read
from vlalign_utils.paths import PACKAGE, sha256
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.model_files import fingerprint_of
from vlalign_utils.pipeline.normalise import KEPT_METADATA
from vlalign_utils.pipeline.parameters import ParameterError, parsed, read_notebook
from vlalign_utils.pipeline.registry import DRAWN, Architecture
from vlalign_utils.pipeline.versions import versions


def input_hash(name: str, arch: Architecture | None, params: dict[str, Any], root: Path) -> str:
    """sha256 of a run's inputs: notebook, modules it reaches, versions, parameters, rules, model and world.

    `arch` is None for the comparison, whose input is the published results of all architectures.
    """
    digest = hashlib.sha256()
    notebook = read_notebook(name, root)
    cells = [
        (cell.cell_type, cell.source, {key: cell.metadata.get(key) for key in KEPT_METADATA})
        for cell in notebook.cells
    ]
    digest.update(_json([cells, params]))
    sources = [_source(module) for module in closure(notebook)]
    digest.update(_json([[str(path.relative_to(PACKAGE)), sha256(path)] for path in sources]))
    digest.update(_json(versions(code(notebook), sources)))
    digest.update(_rules(name, root))
    if arch is not None:
        digest.update(fingerprint_of(arch, root).encode())
        if arch.world != DRAWN:  # so that entries without a world keep their hashes
            digest.update(_json({"world": arch.world}))
    else:
        for entry in registry.load(root).architectures.values():
            for measured in entry.notebooks:
                digest.update(_measured(root / "book" / "results" / entry.name / f"{measured}.json"))
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _rules(notebook: str, root: Path) -> bytes:
    """Rules of the claims that a notebook judges: nothing for one that judges none."""
    path = root / claim_rules.FILE
    known = claim_rules.load(path).values() if path.is_file() else ()
    judged = [
        [claim.id, claim.seeds, {name: region.model_dump() for name, region in claim.conditions.items()}]
        for claim in known
        if claim.chapter == notebook
    ]
    return _json([claim_rules.level(len(known)), judged]) if judged else b""


def _measured(path: Path) -> bytes:
    """Content of a results file besides its timing; nothing for one that is missing, damaged or changed."""
    try:
        return _json(read(path).measured())
    except ResultsError:
        return _json(None)


def code(notebook: NotebookNode) -> str:
    """A notebook's Python, without the lines that are commands of its kernel."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(line for cell in cells for line in cell.splitlines() if line[:1] not in ("%", "!"))


def closure(notebook: NotebookNode) -> list[str]:
    """Modules of the package that a notebook imports, directly or through others, sorted by name.

    Raises ParameterError for code that is not Python, and for a name that the package does not have.
    """
    graph = _graph()
    tree = parsed(code(notebook), "the notebook's code")
    todo, seen = list(_imported(tree, graph.modules)), set[str]()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += graph.find_modules_directly_imported_by(module)
            todo += [module.rpartition(".")[0]] if module.count(".") > 1 else []  # a package runs first
    return sorted(seen)


def _imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Modules of the package that import statements name; a public name stands for the module it is in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            if base.split(".")[0] != PACKAGE.name:
                continue
            public = base == PACKAGE.name and name in PLACES
            full = f"{base}.{PLACES[name] if public else name}".rstrip(".")
            found = full if full in known else base
            if found not in known or found == PACKAGE.name:
                raise ParameterError(f"the notebook imports {full}, which the package does not have")
            yield found


@cache
def _graph() -> grimp.ImportGraph:
    """Import graph of the package: what each module imports when it runs."""
    return grimp.build_graph(PACKAGE.name, exclude_type_checking_imports=True, cache_dir=None)


def _source(module: str) -> Path:
    """The file of a module of the package, e.g. `vlalign_utils.data.scenes`."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
