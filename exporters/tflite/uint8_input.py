"""Let a TFLite file take 8-bit pixels: one operator before the network, and the input becomes uint8.

    float network   CAST       uint8 -> float32, exact
    int8 network    QUANTIZE   uint8 -> int8; with a step of 1 and zero point -128 that is a subtraction, exact as well

Pixels are whole numbers from 0 to 255, so nothing is rounded. Sending bytes instead of floats is a quarter of the
copying, and the app needs no conversion loop of its own.
"""

import copy
from typing import Final

from ai_edge_litert import schema_py_generated as schema

from coordatt_deploy.errors import ConversionError

STEP: Final = 1.0  # of the pixels' grid; a pixel stands for itself


def add_uint8_input(model: schema.ModelT, name: str) -> None:
    """Make the input called *name* uint8, in place.

    Args:
        model: Its input of that name is float32 or int8.
        name: In the signature.

    Raises:
        ConversionError: The file has no such input, or one of another type.
    """
    subgraph, entry = model.subgraphs[0], _entry(model, name)
    index = int(entry.tensorIndex)
    inner = subgraph.tensors[index]
    pixels = copy.copy(inner)
    pixels.type, pixels.name, pixels.quantization = schema.TensorType.UINT8, inner.name, None
    pixels.buffer = len(model.buffers)
    model.buffers.append(schema.BufferT())
    operation = schema.OperatorT()
    if inner.type == schema.TensorType.FLOAT32:
        operation.opcodeIndex = _code(model, schema.BuiltinOperator.CAST)
        operation.builtinOptionsType, operation.builtinOptions = (
            schema.BuiltinOptions.CastOptions,
            schema.CastOptionsT(),
        )
        operation.builtinOptions.inDataType = schema.TensorType.UINT8
        operation.builtinOptions.outDataType = schema.TensorType.FLOAT32
        suffix = "float"
    elif inner.type == schema.TensorType.INT8:
        operation.opcodeIndex = _code(model, schema.BuiltinOperator.QUANTIZE)
        operation.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
        operation.builtinOptions = schema.QuantizeOptionsT()
        pixels.quantization = schema.QuantizationParametersT()
        pixels.quantization.scale, pixels.quantization.zeroPoint = [STEP], [0]
        suffix = "int8"
    else:
        raise ConversionError(f"the input {name} is neither float32 nor int8; it cannot be made of pixels")
    inner.name = f"{name}/{suffix}".encode()
    operation.inputs, operation.outputs = [len(subgraph.tensors)], [index]
    subgraph.inputs = [len(subgraph.tensors) if int(item) == index else int(item) for item in subgraph.inputs]
    entry.tensorIndex = len(subgraph.tensors)
    subgraph.tensors.append(pixels)
    subgraph.operators.insert(0, operation)


def remove_uint8_input(model: schema.ModelT, name: str) -> None:
    """Undo ``add_uint8_input`` of a float network, in place.

    Raises:
        ConversionError: The file does not begin like one that ``add_uint8_input`` wrote.
    """
    subgraph, entry = model.subgraphs[0], _entry(model, name)
    first, pixels = subgraph.operators[0], int(entry.tensorIndex)
    if [int(item) for item in first.inputs] != [pixels] or pixels != len(subgraph.tensors) - 1:
        raise ConversionError(f"the file does not begin with its pixels ({name}); export it again")
    index = int(first.outputs[0])
    subgraph.tensors[index].name = subgraph.tensors[pixels].name
    subgraph.inputs = [index if int(item) == pixels else int(item) for item in subgraph.inputs]
    entry.tensorIndex = index
    del subgraph.operators[0], subgraph.tensors[pixels]


def _entry(model: schema.ModelT, name: str) -> schema.TensorMapT:
    (signature,) = model.signatureDefs
    found = [entry for entry in signature.inputs if entry.name.decode() == name]
    if not found:
        raise ConversionError(f"the file has no input {name}")
    return found[0]


def _code(model: schema.ModelT, operator: int) -> int:
    """Index of the operator among those that the file names; added where it is new."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == operator:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
