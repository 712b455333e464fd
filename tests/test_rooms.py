"""What import-linter cannot see: names, side effects and contracts of the rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

import vlalign_utils
from vlalign_utils.paths import PACKAGE, ROOT

MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
LAZY = {"cli.py"}  # commands import what they need when they run
PLAIN = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in MODULES.items():
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def of_package(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == PACKAGE.name
    return isinstance(node, ast.Import) and any(a.name.split(".")[0] == PACKAGE.name for a in node.names)


def test_no_private_name_is_taken_from_another_module():
    taken = []
    for name, tree in trees():
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and of_package(node):
                taken += [f"{name}: {a.name}" for a in node.names if a.name.startswith("_")]
                modules |= {a.asname or a.name for a in node.names if (a.asname or a.name).islower()}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                if private and node.value.id in modules:
                    taken.append(f"{name}: {node.value.id}.{node.attr}")
    assert taken == []


def test_no_import_hides_in_a_function():
    hidden = [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        if name not in LAZY
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if of_package(node)
    ]
    assert hidden == []


def test_importing_a_module_does_nothing_but_define():
    def docstring(node: ast.stmt) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    def typing_only(node: ast.stmt) -> bool:
        return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"

    doing = [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        if name not in ("__main__.py", "cli.py")
        for node in tree.body
        if not (isinstance(node, PLAIN) or docstring(node) or typing_only(node))
    ]
    assert doing == []


def test_every_room_says_its_contract_and_has_a_line_in_contributing():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        contract = ast.get_docstring(tree)
        assert contract is not None, room
        assert contract.count(". ") == 0, f"{room}: one sentence"
        assert len(tree.body) == 1, f"{room}: its __init__ imports nothing"
        assert f"| `{room}/` |" in page, room
        assert contract in page, room


def test_tests_lie_in_folders_of_the_rooms_names():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - {"conformance"} == set(ROOMS)


@pytest.mark.parametrize("name", vlalign_utils.__all__)
def test_public_names_are_where_the_package_says(name: str):
    value = getattr(vlalign_utils, name)
    assert value.__name__ == name
    assert value.__module__.startswith(f"vlalign_utils.{vlalign_utils.PLACES[name]}")


def test_an_unknown_public_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'load_vml'"):
        _ = vlalign_utils.load_vml
    assert set(vlalign_utils.__all__) == set(vlalign_utils.PLACES) <= set(dir(vlalign_utils))


def test_importing_the_package_loads_no_torch():
    code = "import sys, vlalign_utils; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
