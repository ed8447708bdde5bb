"""Count parameters and multiply-accumulates on a captured graph, operator by operator.

    convolution, linear, matrix product:  one for every product that is summed up
    pool, mean, sum:                      one for every element that is summed up
    product or sum of two tensors:        one per element of the result
    normalisation:                        one per element and step; BatchNorm, which folds away, none

What moves, compares or looks up (max pools, reshapes, ReLU, sigmoid) multiplies and adds nothing and counts as nothing.
Papers count the first line alone; ``Count.of`` gives that figure too. An operator that this module has no rule for is
listed, never left out in silence.
"""

import enum
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, kind, pair
from coordatt_deploy.graph.graph import Graph, is_tensor, weight


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
        layer: Its layer id.
        operator: E.g. ``conv2d``.
        work: What its multiply-accumulates are spent on; None where it has none.
        macs: Multiply-accumulates for one inference.
        parameters: Elements of the weights that no earlier operator has.
        weight_bytes: Of those weights.
        output_bytes: Of its result.
    """

    layer: str
    operator: str
    work: Work | None
    macs: int
    parameters: int
    weight_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Count:
    """A whole graph.

    Attributes:
        layers: In execution order.
        uncounted: Operators without a rule, and how often they occur.
    """

    layers: tuple[LayerCount, ...]
    uncounted: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Of everything."""
        return sum(layer.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Elements of all weights that the graph reads."""
        return sum(layer.parameters for layer in self.layers)

    def of(self, *works: Work) -> int:
        """Multiply-accumulates that are spent on *works*."""
        return sum(layer.macs for layer in self.layers if layer.work in works)


def count(graph: Graph) -> Count:
    """Count *graph*; a dynamic size is taken as that of the capture."""
    sizes = {node: _sizes(graph.module, node) for node in graph.module.graph.nodes}
    layers, seen = [], set[str]()
    uncounted: Counter[str] = Counter()
    ids = {part.tensor: layer.layer_id for layer in graph.layers.layers for part in layer.parts}
    for node in graph.module.graph.nodes:
        if not is_tensor(node):
            continue
        name = kind(node)
        rule = RULES.get(name)
        if rule is None and name not in NO_WORK:
            uncounted[name] += 1
        work, macs = (None, 0) if rule is None else (rule[0], rule[1](node, sizes))
        weights = [item for item in node.all_input_nodes if item.op == "get_attr" and str(item.target) not in seen]
        seen |= {str(item.target) for item in weights}
        tensors = [tensor for item in weights if (tensor := weight(graph.module, item)) is not None]
        layers.append(
            LayerCount(
                layer=ids.get(node.name, node.name),
                operator=name,
                work=work if macs else None,
                macs=macs,
                parameters=sum(tensor.numel() for tensor in tensors),
                weight_bytes=sum(tensor.nbytes for tensor in tensors),
                output_bytes=math.prod(sizes[node]) * node.meta["val"].element_size(),
            )
        )
    return Count(tuple(layers), dict(uncounted))


def _sizes(module: fx.GraphModule, node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor in numbers; empty for what is no tensor."""
    value = weight(module, node) if node.op == "get_attr" else node.meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(size if isinstance(size, int) else int(size.node.hint) for size in shape)


Sizes = Mapping[Any, tuple[int, ...]]


def _convolution(node: fx.Node, sizes: Sizes) -> int:
    image, kernel = node.args[:2]  # kernel: (C_out, C_in / groups, kH, kW); transposed: (C_in, C_out / groups, kH, kW)
    transposed = kind(node).startswith("conv_transpose") or argument(node, 6, "transposed", False) is True
    sites = sizes[image] if transposed else sizes[node]
    return math.prod(sites) * math.prod(sizes[kernel][1:])


def _matrix_product(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(sizes[node]) * sizes[node.args[0]][-1]


def _sum_and_product(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(sizes[node]) * sizes[node.args[1]][-1]


def _einsum(node: fx.Node, sizes: Sizes) -> int:
    """One per combination of all indices and factor but the first, as the sum is written."""
    equation, operands = node.args[:2]
    sides = str(equation).replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for letters, operand in zip(sides, operands, strict=True):  # type: ignore[arg-type]
        if "." not in letters:
            lengths |= dict(zip(letters, sizes[operand], strict=True))
    return math.prod(lengths.values()) * max(len(sides) - 1, 1)


def _attention(node: fx.Node, sizes: Sizes) -> int:
    """Queries times keys, and the weights times values."""
    query, key, value = (sizes[item] for item in node.args[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _elements_read(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(sizes[node.args[0]])


def _window(node: fx.Node, sizes: Sizes) -> int:
    height, width = pair(argument(node, 1, "kernel_size"))
    return math.prod(sizes[node]) * int(height) * (1 if kind(node) == "avg_pool1d" else int(width))


def _per_result(times: int = 1) -> Callable[[fx.Node, Sizes], int]:
    return lambda node, sizes: math.prod(sizes[node]) * times


RULES: Final[Mapping[str, tuple[Work, Callable[[fx.Node, Sizes], int]]]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
                     "conv_transpose3d"), (Work.CONVOLUTION, _convolution)),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot"), (Work.LINEAR, _matrix_product)),
    **dict.fromkeys(("addmm", "baddbmm"), (Work.LINEAR, _sum_and_product)),
    "einsum": (Work.LINEAR, _einsum),
    "scaled_dot_product_attention": (Work.LINEAR, _attention),
    **dict.fromkeys(("mean", "sum", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "cumsum"),
                    (Work.POOLING, _elements_read)),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), (Work.POOLING, _window)),
    **dict.fromkeys(("mul", "add", "sub", "div", "rsub", "square", "pow", "addcmul", "silu", "lerp"),
                    (Work.ELEMENTWISE, _per_result())),
    "hardsigmoid": (Work.ELEMENTWISE, _per_result(2)),  # x / 6 + 1 / 2
    "hardswish": (Work.ELEMENTWISE, _per_result(3)),  # the same, times x
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm", "var", "std"),
                    (Work.ELEMENTWISE, _per_result(3))),  # mean, variance, scale and shift
    "softmax": (Work.ELEMENTWISE, _per_result(2)),  # sum, quotient
    "upsample_bilinear2d": (Work.ELEMENTWISE, _per_result(4)),
}  # fmt: skip

NO_WORK: Final = frozenset({
    "batch_norm",  # folds into the convolution before it
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "prelu", "elu", "celu", "selu",
    "gelu", "sigmoid", "tanh", "softplus", "mish", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "reciprocal", "sign",
    "erf", "sin", "cos", "floor", "ceil", "round", "max_pool1d", "max_pool2d", "adaptive_max_pool2d", "amax", "amin",
    "max", "min", "maximum", "minimum", "argmax", "argmin", "topk", "sort", "where", "masked_fill", "eq", "ne", "lt",
    "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "view", "reshape", "_unsafe_view", "flatten",
    "unflatten", "rand", "randn", "rand_like", "randn_like", "bernoulli",
    "squeeze", "unsqueeze", "permute", "transpose", "t", "numpy_T", "expand", "expand_as", "repeat", "tile", "cat",
    "stack", "split", "split_with_sizes", "chunk", "unbind", "getitem", "slice", "select", "narrow", "index",
    "index_select", "gather", "flip", "roll", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest2d", "contiguous", "clone", "to",
    "_to_copy", "type_as", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "arange", "linspace", "eye",
    "scalar_tensor", "movedim", "slice_scatter", "select_scatter", "index_put", "scatter", "embedding", "copy", "fill",
    "unfold", "im2col", "meshgrid", "diagonal", "swapaxes", "log_softmax",
})  # fmt: skip
