"""Count parameters and multiply-accumulates on a captured graph, operator by operator.

    convolution, linear, matrix product:  one for every product that is summed up
    pool, mean, sum:                      one for every element that is summed up
    product or sum of two tensors:        one per element of the result
    normalisation:                        one per element and step; BatchNorm, which folds away, none

What moves, compares or looks up (max pools, reshapes, ReLU, sigmoid) multiplies and adds nothing and counts as nothing.
Papers count the first line alone; ``Count.of`` gives that figure too. Which rule an operator has stands in its row of
``operators``; one without a rule is listed, never left out in silence.
"""

import enum
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, source, static_pair
from coordatt_deploy.graph.graph import Graph, at_capture, is_tensor, op_name, weight
from coordatt_deploy.graph.operators import MacRule, mac_rule

Sizes = Mapping[fx.Node, tuple[int, ...]]
"""The shape of the tensor of each node."""


class Work(enum.StrEnum):
    """What a multiply-accumulate is spent on."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    POOLING = "pooling"
    ELEMENTWISE = "elementwise"


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One operator.

    Attributes:
        layer: The operator's layer id.
        operator: Its name, e.g. ``conv2d``.
        work: What its multiply-accumulates are spent on; None where it has none.
        macs: Multiply-accumulates for one inference.
        parameters: Elements of the weights that no earlier operator has.
        weight_bytes: The bytes of those weights.
    """

    layer: str
    operator: str
    work: Work | None
    macs: int
    parameters: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Count:
    """A whole graph.

    Attributes:
        layers: The operators in execution order.
        uncounted: Operators without a rule, and how often they occur.
    """

    layers: tuple[LayerCount, ...]
    uncounted: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole graph."""
        return sum(layer.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Elements of all weights that the graph reads."""
        return sum(layer.parameters for layer in self.layers)

    def of(self, *works: Work) -> int:
        """Multiply-accumulates that are spent on *works*."""
        return sum(layer.macs for layer in self.layers if layer.work in works)


def count(graph: Graph) -> Count:
    """Count *graph*; a dynamic size is taken as that of the capture, a dynamic batch as one image."""
    one = _one_image(graph)
    sizes = {node: _sizes(graph.module, node, one) for node in graph.module.graph.nodes}
    layers, seen = [], set[str]()
    uncounted: Counter[str] = Counter()
    ids = {part.tensor: layer.layer_id for layer in graph.layers.layers for part in layer.parts}
    for node in graph.module.graph.nodes:
        if not is_tensor(node):
            continue
        name = op_name(node)
        work, macs = _work(node, sizes)
        if mac_rule(name) is None:
            uncounted[name] += 1
        weights = [item for item in node.all_input_nodes if item.op == "get_attr" and str(item.target) not in seen]
        seen |= {str(item.target) for item in weights}
        tensors = [tensor for item in weights if (tensor := weight(graph.module, item)) is not None]
        layers.append(
            LayerCount(
                layer=ids.get(node.name, node.name),
                operator=name,
                work=work,
                macs=macs,
                parameters=sum(tensor.numel() for tensor in tensors),
                weight_bytes=sum(tensor.nbytes for tensor in tensors),
            )
        )
    return Count(tuple(layers), dict(uncounted))


def _work(node: fx.Node, sizes: Sizes) -> tuple[Work | None, int]:
    """Count one call, and say what its multiply-accumulates are spent on; None where it has none."""
    rule = mac_rule(op_name(node))
    if rule is None or rule is MacRule.NOTHING:
        return None, 0
    work, rule_macs = RULES[rule]
    macs = rule_macs(node, sizes)
    return (work if macs else None), macs


def _one_image(graph: Graph) -> Mapping[object, int]:
    """What a dynamic batch is counted as, by its symbol."""
    if graph.batch is None:
        return {}
    image = next(node for node in graph.module.graph.nodes if node.op == "placeholder")
    return {image.meta["val"].shape[0].node.expr: 1}


def _sizes(module: fx.GraphModule, node: fx.Node, known: Mapping[object, int]) -> tuple[int, ...]:
    """The shape of a node's tensor in numbers; empty for what is not a tensor."""
    value = weight(module, node) if node.op == "get_attr" else node.meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(_number(size, known) for size in shape)


def _number(size: int | torch.SymInt, known: Mapping[object, int]) -> int:
    if isinstance(size, int) or not known:
        return at_capture(size)
    node = size.node
    of_others = {item: node.shape_env.size_hint(item) for item in node.expr.free_symbols - known.keys()}
    return int(node.expr.xreplace({**of_others, **known}))


def _tensors(node: fx.Node, count: int) -> list[fx.Node]:
    """The first arguments of a call that takes tensors there."""
    found = [item for item in node.args[:count] if isinstance(item, fx.Node)]
    if len(found) != count:
        raise TypeError(f"{node.name} takes {count} tensors, {len(found)} were found")
    return found


def _convolution(node: fx.Node, sizes: Sizes) -> int:
    # kernel: (C_out, C_in / groups, kH, kW); transposed: (C_in, C_out / groups, kH, kW)
    image, kernel = _tensors(node, 2)
    transposed = op_name(node).startswith("conv_transpose") or argument(node, 6, "transposed", False) is True
    sites = sizes[image] if transposed else sizes[node]
    return math.prod(sites) * math.prod(sizes[kernel][1:])


def _matrix_product(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(sizes[node]) * sizes[source(node)][-1]


def _sum_and_product(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(sizes[node]) * sizes[_tensors(node, 2)[1]][-1]


def _einsum(node: fx.Node, sizes: Sizes) -> int:
    """One per combination of all indices and factor but the first, as the sum is written."""
    equation, operands = node.args[:2]
    if not isinstance(operands, Sequence):
        raise TypeError(f"{node.name} lists no operands")
    sides = str(equation).replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for letters, operand in zip(sides, operands, strict=True):
        if isinstance(operand, fx.Node) and "." not in letters:
            lengths |= dict(zip(letters, sizes[operand], strict=True))
    return math.prod(lengths.values()) * max(len(sides) - 1, 1)


def _attention(node: fx.Node, sizes: Sizes) -> int:
    """Queries times keys, and the weights times values."""
    query, key, value = (sizes[item] for item in _tensors(node, 3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _elements_read(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(sizes[source(node)])


def _window(node: fx.Node, sizes: Sizes) -> int:
    height, width = static_pair(argument(node, 1, "kernel_size"))
    return math.prod(sizes[node]) * height * (1 if op_name(node) == "avg_pool1d" else width)


def _per_result(times: int) -> Callable[[fx.Node, Sizes], int]:
    return lambda node, sizes: math.prod(sizes[node]) * times


RULES: Final[Mapping[MacRule, tuple[Work, Callable[[fx.Node, Sizes], int]]]] = {
    MacRule.CONVOLUTION: (Work.CONVOLUTION, _convolution),
    MacRule.MATRIX_PRODUCT: (Work.LINEAR, _matrix_product),
    MacRule.SUM_AND_PRODUCT: (Work.LINEAR, _sum_and_product),
    MacRule.EINSUM: (Work.LINEAR, _einsum),
    MacRule.ATTENTION: (Work.LINEAR, _attention),
    MacRule.ELEMENTS_READ: (Work.POOLING, _elements_read),
    MacRule.WINDOW: (Work.POOLING, _window),
    MacRule.ONE_PER_RESULT: (Work.ELEMENTWISE, _per_result(1)),
    MacRule.TWO_PER_RESULT: (Work.ELEMENTWISE, _per_result(2)),
    MacRule.THREE_PER_RESULT: (Work.ELEMENTWISE, _per_result(3)),
    MacRule.FOUR_PER_RESULT: (Work.ELEMENTWISE, _per_result(4)),
}
