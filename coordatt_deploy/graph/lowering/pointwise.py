"""Pointwise convolutions and hard activations: read from a graph, scaled, padded and written anew."""

import enum
from dataclasses import dataclass

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import input_node
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.graph.rewriter import Rewriter


class HardSwishForm(enum.StrEnum):
    """How hard-swish is written.

    ``operator``: as the one operator of torch. ``product``: ``t * hardsigmoid(t)``. ``scaled``: ``t * relu6(t + 3)``,
    six times too large, with the 1/6 in the weights of what follows; XNNPACK takes it in int8, which it does not take
    the operator in.
    """

    OPERATOR = "operator"
    PRODUCT = "product"
    SCALED = "scaled"


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A 1x1 convolution.

    Attributes:
        name: Dotted name of the module that holds it.
        kernel: The weights, (C_out, C_in).
        bias: The bias, (C_out,).
        variant: Added to the names of its weights; says what was done to them.
    """

    name: str
    kernel: torch.Tensor
    bias: torch.Tensor
    variant: str = ""

    def scaled(self, factor: float, shift: float = 0.0) -> "Pointwise":
        """Return the convolution that gives ``factor * y + shift``; computed in double, rounded once."""
        kernel = (self.kernel.double() * factor).to(self.kernel.dtype)
        bias = (self.bias.double() * factor + shift).to(self.bias.dtype)
        return Pointwise(self.name, kernel, bias, f"{self.variant}_scaled")

    def fed(self, factor: float) -> "Pointwise":
        """Return the convolution that gives y for an input that is *factor* times what it should be."""
        if factor == 1.0:
            return self
        kernel = (self.kernel.double() / factor).to(self.kernel.dtype)
        return Pointwise(self.name, kernel, self.bias, f"{self.variant}_scaled")

    def padded(self, outputs: int, inputs: int) -> "Pointwise":
        """Return the convolution with channels of zeros behind its own."""
        if self.kernel.shape == (outputs, inputs):
            return self
        kernel, bias = self.kernel.new_zeros(outputs, inputs), self.bias.new_zeros(outputs)
        kernel[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        bias[: self.bias.shape[0]] = self.bias
        return Pointwise(self.name, kernel, bias, f"{self.variant}_padded")

    def beside(self, other: "Pointwise") -> "Pointwise":
        """Return the convolution in two groups: this one on the first half of the channels, *other* on the second."""
        kernel, bias = torch.cat([self.kernel, other.kernel]), torch.cat([self.bias, other.bias])
        return Pointwise(self.name, kernel, bias, f"{self.variant}_paired")


def read_pointwise(rewriter: Rewriter, node: fx.Node) -> Pointwise:
    """Read a pointwise convolution or linear layer."""
    read = input_node(node, 1, "weight")
    kernel, bias = rewriter.weight(read), rewriter.weight(input_node(node, 2, "bias"))
    assert read is not None  # noqa: S101 - recognition has checked it
    assert kernel is not None  # noqa: S101
    matrix = kernel.reshape(kernel.shape[0], kernel.shape[1])
    name = str(read.target).rpartition(".")[0]
    return Pointwise(name, matrix, kernel.new_zeros(kernel.shape[0]) if bias is None else bias)


def pointwise(rewriter: Rewriter, layer: Pointwise, value: fx.Node, axes: str, groups: int = 1) -> fx.Node:
    """Apply a 1x1 convolution to (N, C, ...), or the same as a linear layer to (..., C)."""
    bias = rewriter.constant(f"{layer.name}.bias{layer.variant}", layer.bias)
    if axes[-1] == "C":
        kernel = rewriter.constant(f"{layer.name}.matrix{layer.variant}", layer.kernel)
        return rewriter.call(aten.linear.default, value, kernel, bias)
    kernel = rewriter.constant(f"{layer.name}.weight{layer.variant}", layer.kernel[:, :, None, None])
    if groups == 1:
        return rewriter.call(aten.conv2d.default, value, kernel, bias)
    return rewriter.call(aten.conv2d.default, value, kernel, bias, [1, 1], [0, 0], [1, 1], groups)


def write_hard(rewriter: Rewriter, operator: str, value: fx.Node, spelling: HardSwishForm) -> tuple[fx.Node, float]:
    """Write a hard-swish or hard-sigmoid; the result and the factor by which it is too large."""
    if operator == "hardswish" and spelling is HardSwishForm.SCALED:
        shifted = rewriter.call(aten.relu6.default, rewriter.call(aten.add.Tensor, value, 3.0))
        return rewriter.call(aten.mul.Tensor, value, shifted), 6.0
    if operator == "hardswish" and spelling is HardSwishForm.PRODUCT:
        return rewriter.call(aten.mul.Tensor, value, rewriter.call(aten.hardsigmoid.default, value)), 1.0
    return rewriter.call(getattr(aten, operator).default, value), 1.0
