"""Store a float ONNX file in float16, through the converter that ONNX Runtime brings.

Inputs and outputs stay float32. ONNX Runtime's CPU provider has few operators in float16: it computes the others in
float32 and rounds between them. What float16 cannot hold keeps to float32, with a Cast on both sides.
"""

import copy
import logging
import warnings
from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.runtimes.argument_checks import first_line

# A constant beyond float16's range, or one that it would round to 0, is not converted but its reader kept in float32.
LEAST: Final = 2.0**-24
GREATEST: Final = float(np.finfo(np.float16).max)
# The converter spares these for a kernel that the first runtimes with float16 lacked; they take it in the CPU provider
# of ONNX Runtime 1.15.1 as well, and as a spared operator cuts the graph by two Casts.
NEEDLESSLY_SPARED: Final = frozenset({"Min", "Max"})


def in_float16(model: onnx.ModelProto, in_float32: Collection[str]) -> onnx.ModelProto:
    """Return *model* with weights and values in float16.

    Args:
        model: In float32; it is left alone.
        in_float32: Names of tensors whose operators compute in float32.

    Raises:
        ConversionError: The converter refused it.
    """
    spared = [node.name for node in model.graph.node if set(node.output) & set(in_float32) or _lost(model, node)]
    blocked = [name for name in DEFAULT_OP_BLOCK_LIST if name not in NEEDLESSLY_SPARED]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights near 0, which are rounded to float16's least number or to 0
            logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
            converted: onnx.ModelProto = convert_float_to_float16(
                copy.deepcopy(model),
                min_positive_val=LEAST,
                max_finite_val=GREATEST,
                keep_io_types=True,
                op_block_list=blocked,
                node_block_list=spared,
            )
        _join_spared(converted, {name for node in model.graph.node for name in node.output})
        sortable = ONNXModel(converted)  # casts come last
        sortable.topological_sort()
        converted = sortable.model
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # the converter and the checker share no base but this
        raise ConversionError(
            f"onnxruntime.transformers.float16 cannot convert the file: {first_line(error)}"
        ) from error
    return converted


def _join_spared(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Let spared operators read one another's float32 values: the converter rounds between them, and 1e-12 is lost.

    Args:
        model: As it was converted; it is edited.
        names: Of the tensors before; a value that is float32 now keeps its own.
    """
    graph = model.graph
    ends = {value.name for value in (*graph.input, *graph.output)}
    rounded = {node.output[0]: node.input[0] for node in graph.node if _casts(node, onnx.TensorProto.FLOAT16)}
    renamed: dict[str, str] = {}  # a float32 value by what it was called
    taken_over: dict[str, str] = {}  # what was widened again, by the value that it was
    needless = []
    for node in graph.node:
        if not _casts(node, onnx.TensorProto.FLOAT) or node.input[0] not in rounded:
            continue
        exact, widened = rounded[node.input[0]], node.output[0]
        if widened not in ends:
            taken_over[widened] = exact
        elif exact in ends or exact in renamed:
            continue
        else:
            renamed[exact] = widened
        needless.append(node)
    _drop(graph, needless)
    _rename_read(graph, taken_over)
    read = {name for node in graph.node for name in node.input} | ends
    unread = [node for node in graph.node if _casts(node, onnx.TensorProto.FLOAT16) and node.output[0] not in read]
    for node in unread:
        if node.output[0] in names and node.input[0] not in ends:
            renamed.setdefault(node.input[0], node.output[0])
    _drop(graph, unread)
    _rename_read(graph, renamed)
    for node in graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = renamed.get(name, name)
    stale = {*taken_over, *renamed, *renamed.values()}
    kept = [value for value in graph.value_info if value.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _casts(node: onnx.NodeProto, kind: int) -> bool:
    return bool(node.op_type == "Cast" and node.attribute[0].i == kind)


def _drop(graph: onnx.GraphProto, nodes: Collection[onnx.NodeProto]) -> None:
    for node in nodes:
        graph.node.remove(node)


def _rename_read(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


def _lost(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether an operator reads a single number that float16 does not hold, or a constant beyond its range."""
    for tensor in model.graph.initializer:
        if tensor.name in node.input and tensor.data_type == onnx.TensorProto.FLOAT:
            sizes = np.abs(numpy_helper.to_array(tensor))
            finite = sizes[np.isfinite(sizes) & (sizes != 0)]
            if finite.size and (finite.max() > GREATEST or finite.max() < LEAST):
                return True
    return False
