"""Take the greatest of integers as integers.

ai-edge-quantizer knows no rule for REDUCE_MAX and leaves it in float, between a DEQUANTIZE of the whole feature map and
a QUANTIZE. Rounding keeps order, so the greatest integer stands for the greatest value:

    q = round(x / step) + zero_point,      max(q) = round(max(x) / step) + zero_point

The result is on the input's grid. Where the quantizer wanted another, its QUANTIZE goes from the one to the other.
"""

from ai_edge_litert import schema_py_generated as schema


def take_maxima_of_integers(model: schema.ModelT) -> None:
    """Write DEQUANTIZE, REDUCE_MAX as one REDUCE_MAX of integers, in place, wherever nothing else reads the floats."""
    for graph in model.subgraphs:
        makers = {index: item for item in graph.operators for index in item.outputs}
        read = [index for item in graph.operators for index in item.inputs] + [*graph.outputs]
        for operation in graph.operators:
            maker = makers.get(operation.inputs[0]) if _builtin(model, operation) == _MAX else None
            if maker is None or _builtin(model, maker) != schema.BuiltinOperator.DEQUANTIZE:
                continue
            result = graph.tensors[operation.outputs[0]]
            users = [item for item in graph.operators if operation.outputs[0] in item.inputs]
            written = operation.outputs[0] in graph.outputs or any(
                _builtin(model, item) != schema.BuiltinOperator.QUANTIZE for item in users
            )
            source = graph.tensors[maker.inputs[0]]
            if written or source.type != schema.TensorType.INT8:
                continue
            floats = operation.inputs[0]
            operation.inputs = [maker.inputs[0], *operation.inputs[1:]]
            result.type, result.quantization = source.type, source.quantization
            if read.count(floats) == 1:
                graph.operators.remove(maker)
            read.remove(floats)


_MAX = schema.BuiltinOperator.REDUCE_MAX


def _builtin(model: schema.ModelT, operation: schema.OperatorT) -> int:
    return int(model.operatorCodes[operation.opcodeIndex].builtinCode)
