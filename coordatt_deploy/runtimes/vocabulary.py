"""A format's vocabulary: what its operators mean, as far as counting and recognising depend on it."""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordatt_deploy.runtimes.file_graph import FileGraph, Node

# Gives the multiply-accumulates of one operator; a dynamic axis counts as 1.
MacRule = Callable[[FileGraph, Node], int]


class Work(enum.StrEnum):
    """What multiply-accumulates are spent on."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    POOLING = "pooling"
    ELEMENTWISE = "elementwise"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the operators of a format mean; what is in none of the tables is not looked at.

    Attributes:
        work: What the operators that multiply or add spend it on, and how much.
        products: The operators that multiply two tensors element by element.
        carriers: The operators that change how a gate lies or copy it along an axis, and nothing else.
        gates: The operators that a gate can come from.
        maxima: The operators that take the greatest value of an axis or a window.
        softmaxes: The operators that weigh values so that the weights sum to 1.
        channel_axis: The axis of the channels in a feature map of four axes.
        splits: The operators that part gates which were computed beside each other.
        outer: The operators that multiply two matrices: of a column and a row they make all products of two gates.
        grids: The operators that bring values onto an integer grid or off it; what else they read is no weight.
    """

    work: Mapping[str, tuple[Work, MacRule]]
    products: frozenset[str]
    carriers: frozenset[str]
    gates: frozenset[str]
    maxima: frozenset[str]
    softmaxes: frozenset[str]
    channel_axis: int = 1
    splits: frozenset[str] = frozenset()
    outer: frozenset[str] = frozenset()
    grids: frozenset[str] = frozenset()


def elements(graph: FileGraph, name: str) -> int:
    """Return the number of elements of a tensor."""
    return math.prod(graph.shape(name))


def weight_shape(graph: FileGraph, node: Node) -> tuple[int, ...]:
    """Return the shape of a convolution's or linear operator's weight: its first constant of two axes or more."""
    shapes = (graph.shape(name) for name in node.inputs if len(graph.shape(name)) >= 2 and graph.is_weight(name))
    return next(shapes, ())


def per_result(times: int = 1) -> MacRule:
    """Return the rule of an operator that does *times* of them for each element of its result."""
    return lambda graph, node: elements(graph, node.outputs[0]) * times


def per_input(graph: FileGraph, node: Node) -> int:
    """One for each element that is read."""
    return elements(graph, node.inputs[0])


def per_window(graph: FileGraph, node: Node) -> int:
    """A pool: one for each element of each window."""
    return elements(graph, node.outputs[0]) * math.prod(node.window or (1,))


def per_result_and_kernel(graph: FileGraph, node: Node) -> int:
    """A convolution or linear layer; weight: (C_out, everything that one result sums up)."""
    return elements(graph, node.outputs[0]) * math.prod(weight_shape(graph, node)[1:])


def per_input_and_kernel(graph: FileGraph, node: Node) -> int:
    """A transposed convolution; weight: (C_in, C_out / groups, kH, kW)."""
    return elements(graph, node.inputs[0]) * math.prod(weight_shape(graph, node)[1:])


def matrix_product(graph: FileGraph, node: Node) -> int:
    """A product of matrices: as many for each result as the first factor has columns."""
    inner = graph.shape(node.inputs[0])
    return elements(graph, node.outputs[0]) * (inner[-1] if inner else 1)
