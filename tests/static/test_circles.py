"""Modules import one another in one direction only, also inside a folder."""

import graphlib
import subprocess
import sys

import pytest

LOOK = """
import graphlib, sys
import grimp

sys.path.insert(0, sys.argv[1])
graph = grimp.build_graph("coordatt_deploy", cache_dir=None)
imports = {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
try:
    graphlib.TopologicalSorter(imports).prepare()
except graphlib.CycleError as error:
    sys.exit("a circle: " + " -> ".join(error.args[1]))
print(len(imports))
"""


def test_no_circle_among_modules(installed, tmp_path):
    """
    In the wheel, where the three folders are one package.
    """
    command = [sys.executable, "-c", LOOK, str(installed)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert 0 == found.returncode, found.stderr
    assert int(found.stdout) > 200


def test_a_circle_would_be_seen():
    """
    Two modules that import each other are an error of the same kind.
    """
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
