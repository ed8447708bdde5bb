"""What each form is made of, in the graph and in the files: what the runtimes are slow with is not there."""

import platform
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion import quantized_artifact as quantizing
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.exporters.coreml.lowering import PROGRAM
from coordatt_deploy.exporters.executorch.lowering import FLOAT as EXECUTORCH
from coordatt_deploy.exporters.executorch.lowering import INT8 as EXECUTORCH_INT8
from coordatt_deploy.exporters.onnx.lowering import ARM64, ARM64_INT8, X86_64
from coordatt_deploy.exporters.tflite.lowering import FLOAT, INT8
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import all_targets, target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.runtimes.tflite import runner

ZOO = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "zoo" / "variants.py")))
MOVES = {"permute", "transpose", "cat", "split_with_sizes", "split", "slice", "expand"}
SPEC = ModelSpec("network", Preprocessing((32, 32)))

# Around the block stand two convolutions, relu6 and the mean at the end.
OUTSIDE = 4
AT_MOST = {
    ARM64: 21, ARM64_INT8: 21, X86_64: 14, FLOAT: 12,
    INT8: 16, PROGRAM: 15, EXECUTORCH: 12, EXECUTORCH_INT8: 16,
}  # fmt: skip


def captured():
    network, _ = ZOO.around(ZOO.attention(ZOO.Way()))
    return capture(network, (torch.randn(1, 3, 32, 32),))


def operators(graph):
    return Counter(op_name(node) for node in graph.module.graph.nodes if node.op == "call_function" and op_name(node))


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_a_form_has_few_operators(target):
    """
    A bound for each, so that no change makes one longer unnoticed; the paper's code has 19.
    """
    folded = fold_batchnorms(captured())[0]

    found = operators(lower(folded, target)[0])
    del found["flatten"]  # of the mean at the end, which TFLite's form writes so

    assert found.total() - OUTSIDE <= AT_MOST[target], found
    assert operators(folded).total() - OUTSIDE == 19


@pytest.mark.parametrize("target", [FLOAT, INT8, X86_64, EXECUTORCH, EXECUTORCH_INT8])
def test_two_branches_move_nothing(target):
    """
    No transposition, concatenation or split is left of the usual code.
    """
    found = operators(lower(fold_batchnorms(captured())[0], target)[0])

    assert set() == MOVES & found.keys()


def written(kind_, folder, cpu=None, *, lowered=True):
    graph = fold_batchnorms(captured())[0]
    if lowered:
        graph, _ = lower(graph, target_of(kind_, cpu))
    path = folder / f"network.{'mlpackage' if kind_ is Format.COREML else kind_}"
    exporter(kind_).export(graph, ExportRequest(SPEC, Precision.FP32, path, cpu))
    return path


def as_it_runs(path, folder):
    """The operators of the graph that ONNX Runtime makes of a file here."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime blocks the layout on x86-64 only")
def test_nothing_is_reordered_inside_the_x86_form(tmp_path):
    """
    The image comes in as it is, and one reorder gives the last feature map out; the usual code has more.
    """
    blocked = as_it_runs(written(Format.ONNX, tmp_path, TargetCpu.X86_64), tmp_path)
    usual = as_it_runs(written(Format.ONNX, tmp_path, lowered=False), tmp_path)

    assert (0, 1) == (blocked["ReorderInput"], blocked["ReorderOutput"])
    assert dict.fromkeys(("AveragePool", "Upsample", "Mul"), 2) == {
        key: blocked[key] for key in ("AveragePool", "Upsample", "Mul")
    }
    assert usual["ReorderInput"] + usual["ReorderOutput"] >= 4


def inside(found):
    """The kinds of operators from the first mean to the last product: those of the block."""
    names = [item.name for item in found.operators]
    return Counter(names[names.index("MEAN") : len(names) - names[::-1].index("MUL")])


@pytest.mark.slow
def test_xnnpack_runs_the_float_file_in_one_piece(tmp_path):
    """
    One partition, nothing left to the built-in kernels, and 12 operators in the block, none of which moves anything.
    """
    found = runner.operators(written(Format.TFLITE, tmp_path))

    assert (1, []) == (found.partitions, [item.name for item in found.operators if not item.delegated])
    assert {"MEAN": 2, "CONV_2D": 4, "HARD_SWISH": 2, "LOGISTIC": 2, "MUL": 2} == inside(found)
    assert "TRANSPOSE" not in {item.name for item in found.operators}


@pytest.mark.slow
def test_xnnpack_runs_the_int8_file_in_one_piece(tmp_path):
    """
    The same in int8, where the usual code falls apart: two operators more spell out a hard-swish that XNNPACK takes.
    """
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    data = CalibrationSet("noise", {"image": images}, tuple("abcdefgh"), 0)
    recipe = replace(parse("static_wi8_ai8"), adjust=False)

    prepared = quantizing.prepare(captured(), recipe, Format.TFLITE, SPEC, tmp_path, data=data)
    ranges = quantizing.measure_ranges(prepared, recipe, data)
    quantizing.write(prepared, recipe, ranges, tmp_path / "network_int8.tflite", SPEC)

    found = runner.operators(tmp_path / "network_int8.tflite")
    assert (1, []) == (found.partitions, [item.name for item in found.operators if not item.delegated])
    assert {"MEAN": 2, "CONV_2D": 4, "ADD": 2, "MUL": 4, "LOGISTIC": 2} == inside(found)
    assert "TRANSPOSE" not in {item.name for item in found.operators}


@pytest.mark.slow
def test_core_ml_gets_eleven_operators_for_a_block(tmp_path):
    """
    Beside the operators around it; coremltools' own default makes twice as many.
    """
    from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools

    program = coremltools.utils.load_spec(str(written(Format.COREML, tmp_path))).mlProgram.functions["main"]
    kinds = Counter(item.type for item in program.block_specializations[program.opset].operations)

    assert kinds.total() - kinds["const"] - OUTSIDE <= 11, kinds
    assert "transpose" not in kinds
