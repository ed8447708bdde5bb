"""Activations in terms of those that every converter has.

    gelu_tanh(x)  = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    celu(x, a)    = a elu(x / a)
    softplus(x)   = max(x, 0) + log(1 + exp(-|x|)),       log_sigmoid(x) = -softplus(-x)

The formulas are those of torch's own documentation; the last one is in the form that no exponential overflows in.
"""

import math
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, is_number, source
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.graph.rewriter import Rewriter

_CUBE: Final = 0.044715  # torch.nn.functional.gelu, approximate="tanh"


def gelu_tanh(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the approximation of GELU by tanh; the exact one is left alone."""
    if argument(node, 1, "approximate", "none") != "tanh":
        return None
    call, value = rewriter.call, source(node)
    cube = call(aten.mul.Tensor, call(aten.mul.Tensor, value, value), value)
    inner = call(aten.add.Tensor, value, call(aten.mul.Tensor, cube, _CUBE))
    curve = call(aten.tanh.default, call(aten.mul.Tensor, inner, math.sqrt(2 / math.pi)))
    return call(aten.mul.Tensor, call(aten.mul.Tensor, value, 0.5), call(aten.add.Tensor, curve, 1.0))


def celu(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write CELU as an ELU of the scaled value."""
    alpha = argument(node, 1, "alpha", 1.0)
    if not is_number(alpha):
        return None
    scaled = rewriter.call(aten.mul.Tensor, source(node), 1.0 / alpha)
    return rewriter.call(aten.mul.Tensor, rewriter.call(aten.elu.default, scaled, 1.0), float(alpha))


def scaled_softplus(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write softplus with a scale or a threshold of its own; the latter only where it is low enough to show."""
    beta, threshold = argument(node, 1, "beta", 1), argument(node, 2, "threshold", 20)
    if not is_number(beta) or not is_number(threshold) or (beta == 1 and threshold == _USUAL_THRESHOLD):
        return None
    call, value = rewriter.call, source(node)
    scaled = value if beta == 1 else call(aten.mul.Tensor, value, float(beta))
    curve = _softplus(rewriter, scaled)
    curve = curve if beta == 1 else call(aten.mul.Tensor, curve, 1.0 / beta)
    if threshold >= _INVISIBLE:
        return curve
    linear = call(aten.gt.Scalar, scaled, float(threshold))
    return call(aten.where.self, linear, value, curve)


_USUAL_THRESHOLD: Final = 20
# log(1 + exp(-t)) / t is below half a unit in the last place of float32 from here on.
_INVISIBLE: Final = 15.0


def log_sigmoid(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the logarithm of a sigmoid so that it does not run into log(0)."""
    negative = rewriter.call(aten.neg.default, source(node))
    return rewriter.call(aten.neg.default, _softplus(rewriter, negative))


def log_sigmoid_of_softplus(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the logarithm of a sigmoid as -softplus(-x), where a runtime's softplus keeps its small values.

    torch.onnx writes Log(Sigmoid(x)), and ONNX Runtime's sigmoid is 0 below -17: minus infinity instead of -17.
    """
    negative = rewriter.call(aten.neg.default, source(node))
    return rewriter.call(aten.neg.default, rewriter.call(aten.softplus.default, negative))


def float_numbers(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the numbers that an activation takes as floating-point ones where they are integers."""
    assert isinstance(node.target, torch._ops.OpOverload)  # noqa: S101 - the table names operators of ATen
    if not source(node).meta["val"].is_floating_point():
        return None
    schema = [item for item in node.target._schema.arguments[1:] if "scale" not in item.name]  # those of SELU alone
    numbers = [argument(node, at, item.name, item.default_value) for at, item in enumerate(schema, start=1)]
    if not any(isinstance(number, int) for number in numbers):
        return None
    return rewriter.call(node.target, source(node), *(float(n) if is_number(n) else n for n in numbers))


def hard_shrink(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write hardshrink as the value where it is outside of the band, else zero."""
    value, band = source(node), argument(node, 1, "lambd", 0.5)
    if not is_number(band):
        return None
    outside = rewriter.call(aten.gt.Scalar, rewriter.call(aten.abs.default, value), float(band))
    return rewriter.call(aten.where.self, outside, value, rewriter.call(aten.mul.Tensor, value, 0.0))


def _softplus(rewriter: Rewriter, value: fx.Node) -> fx.Node:
    call = rewriter.call
    fall = call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, value)))
    rest = call(aten.log.default, call(aten.add.Tensor, fall, 1.0))
    return call(aten.add.Tensor, call(aten.relu.default, value), rest)
