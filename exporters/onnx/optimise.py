"""Let the official exporter's optimizer run, without its taking a constant for another that it only resembles.

    dropped:  x + c  and  x - c  where |c| <= 1e-8,  x * c  and  x / c  where |c - 1| <= 1e-5
    fused:    x * clip(x + a, 0, b) / b  into HardSwish where a is within 1e-4 of 3, b of 6

These are the tolerances of onnxscript's rewriter (``_pattern_ir.Constant``, ``_fuse_hardswish``). An epsilon of 1e-12
under a division is none: without it a dead channel gives NaN. So whatever is near such a number and is not that number
itself is handed to the optimizer as an input of the graph, which no rule can look into, and becomes a constant again
afterwards.
"""

import math
from typing import Final

import numpy as np
import onnx_ir as ir
import torch

# What the rules look for. 0.5 and 1/6 are the coefficients of a HardSigmoid.
LANDMARKS: Final = (0.0, 1.0, 3.0, 6.0, 0.5, 1 / 6)
RELATIVE: Final = 1e-3  # ten times the widest tolerance of a rule
ABSOLUTE: Final = 1e-6  # a hundred times what is taken for 0


def optimise(program: torch.onnx.ONNXProgram) -> None:
    """Optimise *program* in place; constants that only resemble those of a rule keep their operators."""
    graph = program.model.graph
    hidden = {value: tensor for value, tensor in _constants(graph).items() if resembles(tensor)}
    inputs = {_as_input(graph, value): tensor for value, tensor in hidden.items()}
    program.optimize()
    for value, tensor in inputs.items():
        program.model.graph.inputs.remove(value)
        value.const_value = tensor
        program.model.graph.register_initializer(value)


def resembles(tensor: ir.TensorProtocol) -> bool:
    """Whether a rule may take it for a number that it is not: a single float near one of LANDMARKS."""
    if tensor.size != 1 or not tensor.dtype.is_floating_point():
        return False
    array = tensor.numpy()
    value = float(array.reshape(-1)[0])
    return any(
        math.isclose(value, landmark, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        and value != float(np.asarray(landmark, array.dtype))
        for landmark in LANDMARKS
    )


def _constants(graph: ir.Graph) -> dict[ir.Value, ir.TensorProtocol]:
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    found = {value: ir.convenience.get_const_tensor(value) for value in values if not value.is_graph_output()}
    return {value: tensor for value, tensor in found.items() if tensor is not None}


def _as_input(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Take the constant out of the graph, and let an input of the same name stand for it."""
    stand_in = ir.Value(name=value.name, shape=value.shape, type=value.type)
    producer = value.producer()
    ir.convenience.replace_all_uses_with(value, stand_in)
    if producer is None:
        del graph.initializers[str(value.name)]
    else:
        graph.remove(producer)
    graph.inputs.append(stand_in)
    return stand_in
