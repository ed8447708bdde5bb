"""What a TFLite file needs follows from its tensors' types, not from what its operators say of themselves."""

import pytest
from ai_edge_litert import schema_py_generated as schema

from coordatt_deploy.runtimes.tflite.needs import RUNTIMES, runtime_needs, say_versions

TYPES = schema.TensorType
OPERATORS = schema.BuiltinOperator


def _model(operator, *types, version=1, scales=0):
    """One operator: tensors of *types*, the last of which it makes; *scales* of the second one's grid."""
    tensors = []
    for index, kind in enumerate(types):
        tensor = schema.TensorT()
        tensor.name, tensor.type = f"tensor_{index}".encode(), kind
        if index == 1 and scales:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [1.0] * scales
        tensors.append(tensor)
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = operator, min(operator, 127), version
    operation, graph, model = schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    operation.opcodeIndex, operation.inputs = 0, list(range(len(types) - 1))
    operation.outputs = [len(types) - 1]
    graph.tensors, graph.operators = tensors, [operation]
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    return model


FLOAT, INT8, INT16, HALF = TYPES.FLOAT32, TYPES.INT8, TYPES.INT16, TYPES.FLOAT16


@pytest.mark.parametrize(
    ("operator", "types", "said", "scales", "needed", "runtime"),
    [
        ("FULLY_CONNECTED", (FLOAT, FLOAT, FLOAT), 5, 0, 5, "2.0"),
        ("FULLY_CONNECTED", (FLOAT, INT8, FLOAT), 5, 1, 5, "2.0"),
        ("FULLY_CONNECTED", (FLOAT, INT8, FLOAT), 5, 16, 12, "2.17"),
        ("CONV_2D", (FLOAT, INT8, FLOAT), 1, 16, 5, "2.4"),
        ("CONV_2D", (INT8, INT8, INT8), 1, 16, 3, "1.14"),
        ("CONV_2D", (INT16, INT8, INT16), 1, 16, 4, "2.3"),
        ("DEPTHWISE_CONV_2D", (FLOAT, INT8, FLOAT), 1, 16, 6, "2.3"),
        ("LOGISTIC", (INT8, INT8), 1, 0, 2, "1.14"),
        ("DEQUANTIZE", (HALF, FLOAT), 1, 0, 3, "1.15"),
        ("QUANTIZE", (FLOAT, INT16), 1, 0, 2, "1.15"),
        ("FULLY_CONNECTED", (FLOAT, FLOAT, FLOAT), 99, 0, 99, None),
    ],
)
def test_the_version_that_the_types_ask_for(operator, types, said, scales, needed, runtime):
    """
    Or what the file says where that is higher; of a version that no table has, no runtime is named.
    """
    model = _model(getattr(OPERATORS, operator), *types, version=said, scales=scales)
    needs = runtime_needs(model)
    say_versions(model)

    assert {operator: needed} == needs.operators
    assert runtime == needs.least.get("tflite")
    assert operator in needs.because
    assert needed == model.operatorCodes[0].version


def test_the_table_never_goes_back():
    """
    A newer version of an operator never needs an older runtime.
    """
    for operator, row in RUNTIMES.items():
        known = [tuple(map(int, text.split("."))) for text in row.split() if text != "-"]
        assert known == sorted(known), operator
