"""The IR version that an ONNX file says it needs."""

import onnx


def lower_ir(model: onnx.ModelProto) -> None:
    """Say the lowest IR version that the operators need: ONNX Runtime 1.15 and 1.16 refuse the one that torch writes.

    What newer ones added, metadata of nodes and of the graph, our files do not have.
    """
    least = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = min(model.ir_version, least)
