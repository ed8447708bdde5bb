"""Cells of the table of operators, measured anew: the files are held against torch through the runtimes themselves."""

import pytest
import torch
from operator_benchmark import ROWS, measure, network

from coordatt_deploy.formats import Format
from coordatt_deploy.graph.lowering.decompositions import activations
from coordatt_deploy.graph.operator_support import Verdict, table

BY_NAME = {row.name: row for row in ROWS}
CELLS = {(row.operator, row.what): row.cells for row in table().rows}
# A few of each format in the fast tests: what was wrong in published networks most often.
FEW = {
    Format.ONNX: ("avg_pool2d (divisor_override)", "conv_transpose2d (grouped)"),
    Format.COREML: (
        "gelu (tanh)", "_upsample_bilinear2d_aa (antialias)", "add (alpha)",
        "reciprocal", "div (by one less than a count, as SimAM does)", "softplus (beta and threshold)",
        "pad (circular)", "upsample_bicubic2d (twice)",
    ),
}  # fmt: skip
# A dozen of every five dozens; `make operators` measures all of them.
SLOW = [
    pytest.param(item, index, marks=pytest.mark.slow)
    for item in Format for index in range(0, len(ROWS), 60)
]  # fmt: skip


def measured(rows, file_format):
    return {row.name: cell for row, cell in zip(rows, measure(rows, file_format), strict=True)}


def verdicts(rows, file_format):
    return {row.name: CELLS[row.operator, row.what][file_format].verdict for row in rows}


@pytest.mark.parametrize("file_format", FEW)
def test_a_few_cells_are_what_the_table_says(file_format):
    """
    In one file per format.
    """
    rows = [BY_NAME[name] for name in FEW[file_format]]

    found = measured(rows, file_format)

    assert verdicts(rows, file_format) == {name: cell.verdict for name, cell in found.items()}
    assert {Verdict.REFUSED} != {cell.verdict for cell in found.values()}


@pytest.mark.slow
@pytest.mark.parametrize("names", [
    ("expand_as (rows as many as channels, ECA)", "expand_as (a gate, multiplied)",
     "expand (joined to the feature map)", "repeat (a gate, multiplied)",
     "upsample_nearest2d (ratio no whole number)", "pow (square of five axes)"),
    ("conv_transpose2d (grouped)", "conv_transpose2d (dilated)", "adaptive_max_pool2d (to no divisor)",
     "linalg_vector_norm (normalize)", "where", "argmax"),
])  # fmt: skip
def test_a_few_cells_of_the_slowest_converter(names):
    """
    Gates expanded by hand, resizes by ratios that are no whole number, YOLO's boxes, decoders, class maps.
    """
    rows = [BY_NAME[name] for name in names]

    assert verdicts(rows, Format.TFLITE) == {name: cell.verdict for name, cell in measured(rows, Format.TFLITE).items()}


@pytest.mark.parametrize(("file_format", "start"), SLOW)
def test_dozens_of_cells_are_what_the_table_says(file_format, start):
    """
    A dozen rows at a time: a converter of another version shows here.
    """
    dozen = ROWS[start : start + 12]
    for size in {row.size for row in dozen}:
        rows = [row for row in dozen if row.size == size]
        assert verdicts(rows, file_format) == {name: cell.verdict for name, cell in measured(rows, file_format).items()}


def test_a_file_that_computes_something_else_is_no_right_cell(monkeypatch):
    """
    The negative twin: a GELU whose cubic term is a tenth too strong, let through by lowering, is found in the file.
    """
    monkeypatch.setattr(activations, "_CUBE", 1.1 * activations._CUBE)
    monkeypatch.setattr("coordatt_deploy.graph.lowering.lower.TOLERANCE", 1.0)

    (cell,) = measure([BY_NAME["gelu (tanh)"]], Format.COREML)

    assert Verdict.REFUSED is cell.verdict
    assert "computes something else" in cell.detail


def test_measuring_leaves_the_networks_alone():
    """
    The same row gives the same network every time, so that a cell can be measured again.
    """
    first, second = (network(ROWS[0]).state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)
