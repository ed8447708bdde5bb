"""Let an ONNX file take images with the channels last, as apps hold them."""

from typing import Final

import onnx
from onnx import helper

CHANNELS_LAST: Final = "NHWC"
TO_CHANNELS_FIRST: Final = (0, 3, 1, 2)
RANK: Final = len(TO_CHANNELS_FIRST)


def channels_last(model: onnx.ModelProto) -> frozenset[str]:
    """Give every input of rank 4 its channels last, with a Transpose behind it; the model is edited.

    ONNX Runtime takes the Transpose into what follows where it can. Other inputs stay as they are.

    Returns:
        Names of the inputs.
    """
    graph = model.graph
    images = [value for value in graph.input if len(value.type.tensor_type.shape.dim) == RANK]
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    added = []
    for value in images:
        inner = f"{value.name}_channels_first"
        while inner in taken:
            inner += "_"
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == value.name:
                    node.input[place] = inner
        batch, channels, height, width = (axis for axis in _copies(value))
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend([batch, height, width, channels])
        added.append(helper.make_node("Transpose", [value.name], [inner], inner, perm=TO_CHANNELS_FIRST))
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return frozenset(value.name for value in images)


def _copies(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    found = []
    for axis in value.type.tensor_type.shape.dim:
        copy = onnx.TensorShapeProto.Dimension()
        copy.CopyFrom(axis)
        found.append(copy)
    return found
