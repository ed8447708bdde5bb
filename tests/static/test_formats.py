"""A format has one home: nothing else in the package knows a format by its name."""

import ast
import re
from pathlib import Path

import pytest

from coordatt_deploy.formats import FORMATS, Format

ROOT = Path(__file__).parents[2]
# The row of a format, and what was measured on its files.
HOMES = {"coordatt_deploy/formats.py", "coordatt_deploy/parity/tolerances.py"}
FOLDERS = tuple(f"{folder}/{name}/" for folder in ("coordatt_deploy/runtimes", "exporters") for name in Format)

VALUES = re.compile(rf"\b({'|'.join(Format)})\b")
SUFFIXES = re.compile("|".join(rf"{re.escape(row.suffix)}\b" for row in FORMATS.values()))


def modules():
    """Every module of the package that is not a home of formats, by its path in the repository."""
    folders = ("coordatt_deploy", "exporters", "models")
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    names = {path.relative_to(ROOT).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name not in HOMES and not name.startswith(FOLDERS)}


def texts_for_people(tree):
    """The nodes of docstrings, which are also the help of commands, and of the help of options."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(first.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(node.value)  # a text below an attribute
        elif isinstance(node, ast.keyword) and node.arg == "help":
            found.update(ast.walk(node.value))
    return found


def mentions(source):
    """Line and text of what names a format in *source*: a member, its value, its suffix, a module of its folders."""
    tree = ast.parse(source)
    excused = texts_for_people(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Format":
            if node.attr in Format.__members__:
                found.append((node.lineno, f"Format.{node.attr}"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in excused:
            if VALUES.search(node.value) or SUFFIXES.search(node.value):
                found.append((node.lineno, node.value))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            found += [(node.lineno, name) for name in names if name.startswith("coordatt_deploy.")
                      and re.search(rf"\b(runtimes|exporters)\.({'|'.join(Format)})\b", name)]  # fmt: skip
    return found


@pytest.mark.parametrize("name", modules())
def test_a_format_is_named_in_its_homes_alone(name):
    """
    Neither members of ``Format``, nor their values (pip extras and options among them), nor suffixes, nor folders.
    """
    assert [] == mentions(modules()[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = y is Format.ONNX", "Format.ONNX"),
        ("x = 'tflite'", "tflite"),
        ("x = f'{stem}.mlpackage'", ".mlpackage"),
        ("raise E(\"run: pip install 'coordatt-deploy[coreml]'\")", "run: pip install 'coordatt-deploy[coreml]'"),
        ("from coordatt_deploy.runtimes.onnx.reader import graph", "coordatt_deploy.runtimes.onnx.reader.graph"),
        ("from coordatt_deploy.exporters import coreml", "coordatt_deploy.exporters.coreml"),
        ("import coordatt_deploy.exporters.tflite.export", "coordatt_deploy.exporters.tflite.export"),
    ],
)
def test_a_mention_is_found(source, expected):
    """
    However it is written.
    """
    assert [expected] == [text for _, text in mentions(source)]


@pytest.mark.parametrize(
    "source",
    [
        "'''Writes onnx/net.onnx.'''",
        "def f():\n    '''Reads Format.ONNX, that is ``.onnx``.'''",
        "option(help='such as onnx')",
        "x = {item: 1 for item in Format}",
        "import onnxruntime_x",
        "x = 'torch.export'",
    ],
)
def test_texts_for_people_and_other_words_are_no_mention(source):
    """
    Examples in help and documentation stay; so does what only resembles a name.
    """
    assert [] == mentions(source)


def test_the_homes_exist():
    """
    An excuse for a folder that is gone would excuse nothing, or something else.
    """
    assert [] == [name for name in (*HOMES, *FOLDERS) if not (ROOT / name).exists()]
