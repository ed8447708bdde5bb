"""ONNX files say the lowest IR version that their operators need, so that old runtimes open them."""

import onnx
import pytest
from onnx import TensorProto, helper

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.exporters.onnx.ir_version import lower_ir
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of


@pytest.mark.parametrize(("opset", "said", "needed"), [(18, 10, 8), (20, 10, 9), (21, 10, 10), (18, 7, 7)])
def test_the_lowest_that_the_operators_need(opset, said, needed):
    """
    Never more than the file said, never less than its opset came with.
    """
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=said)

    lower_ir(model)

    assert needed == model.ir_version


def test_an_exported_file_opens_in_runtimes_of_2023(tiny_folded, tmp_path):
    """
    IR version 8, which ONNX Runtime 1.15 reads; nothing of a newer one is in the file.
    """
    path = tmp_path / "net.onnx"
    request = ExportRequest(
        ModelSpec("net", Preprocessing((32, 48)), source_sha256="0" * 64), Precision.FP32, path, TargetCpu.ARM64
    )
    exporter(Format.ONNX).export(lower(tiny_folded, target_of(Format.ONNX, TargetCpu.ARM64))[0], request)

    model = onnx.load(path)

    assert 8 == model.ir_version
    assert not model.graph.metadata_props
    assert not any(node.metadata_props for node in model.graph.node)
