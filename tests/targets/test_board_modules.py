"""What travels to another machine is named once, is complete, and imports no framework."""

import ast
import tomllib
from pathlib import Path

from coordatt_deploy.targets.board_modules import BOARD_MODULES, PACKAGE, board_files
from coordatt_deploy.targets.qemu_arm64.sysroot import ship_code

ROOT = Path(__file__).parents[2]


def _contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(contract for contract in contracts if contract["name"].startswith("What travels to a board"))


def _statements(body):
    """Statements that run when the module is imported; what only type checkers read is left out."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _statements([*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())])


def _imports(file):
    """Modules that *file* names when it is imported, and those that lie in what it names."""
    for node in _statements(ast.parse((PACKAGE.parent / file).read_text()).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(module):
    """The file of a module of ours, relative as ``board_files`` yields it; None for what is not one."""
    path = Path(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if (PACKAGE.parent / file).is_file()), None)


def test_the_import_contract_lists_what_travels():
    """
    pyproject.toml cannot read a constant: it has the same names, none twice.
    """
    assert sorted(BOARD_MODULES) == sorted(_contract()["source_modules"])


def test_what_a_travelling_module_imports_travels():
    """
    Else it could not be imported there.
    """
    files = set(board_files())

    left_behind = {
        f"{file} imports {module}"
        for file in files
        for module in _imports(file)
        if module.startswith("coordatt_deploy") and (needed := _source(module)) is not None and needed not in files
    }

    assert set() == left_behind


def test_no_framework_is_imported():
    """
    The packages around the modules are looked at as well, which the contract does not name.
    """
    forbidden = set(_contract()["forbidden_modules"])

    assert set() == {
        f"{file} imports {module}"
        for file in board_files()
        for module in _imports(file)
        if module.partition(".")[0] in forbidden
    }


def test_just_these_files_are_copied(tmp_path):
    """
    Modules and the packages around them; the client's side, other targets and what needs converters stay at home.
    """
    ship_code(tmp_path)

    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")}
    assert set(board_files()) == copied
    assert Path("coordatt_deploy/targets/session_server.py") in copied
    assert Path("coordatt_deploy/targets/__init__.py") in copied
    assert Path("coordatt_deploy/targets/session_client.py") not in copied
    assert Path("coordatt_deploy/runtimes/onnx/reader.py") not in copied
    assert Path("coordatt_deploy/graph/capture.py") not in copied
    assert not [path for path in copied if {"qemu_arm64", "passes", "lowering"} & set(path.parts)]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".py", ".pyc"}
