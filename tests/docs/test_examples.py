"""The examples, run as a reader runs them: in an empty folder, to the end."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "export_and_prove.py": "coreml/Network_fp32.mlpackage: the same function",
    "int8.py": "tflite/mobilenetv2_ca_035_digits_static_wi8_ai8.tflite:",
    "latency.py": "digits/reports/report.html",
    "own_checkpoint.py": '"name": "pets"',
    "own_metric.py": "of the pixels",
}
pytestmark = pytest.mark.slow


def test_every_example_is_run():
    """
    None is forgotten here.
    """
    assert SAID.keys() == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("name", SAID)
def test_a_script_runs_to_its_end(name, tmp_path):
    """
    It ends well, and says what it is there to show.
    """
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=tmp_path, capture_output=True, text=True)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert SAID[name] in done.stdout


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """
    Without an error, and results show themselves as tables.
    """
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [output.data["text/html"] for cell in notebook.cells if cell.cell_type == "code"
             for output in cell.outputs if "text/html" in output.get("data", {})]  # fmt: skip
    assert 3 == len(shown)
    assert "layers mapped" in shown[0]
    assert "passed" in shown[1]
    assert "95 % interval" in shown[2]


def test_the_notebook_is_kept_without_results():
    """
    What is committed is the text alone.
    """
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)

    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
