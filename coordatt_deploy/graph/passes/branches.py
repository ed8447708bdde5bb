"""Merge branches that are linear in one value and summed up into one convolution: structural re-parameterisation.

    y = sum of f_i(x),   f_i a convolution, x itself, either behind a BatchNorm or a factor per channel
    y = W * x + b,       W = sum of W_i, each in the middle of a kernel as large as the largest; b = sum of b_i

What RepVGG, MobileOne, RepViT, FastViT and ACNet train as several branches is one convolution for a phone. Branches are
found by what they compute, whatever their modules are called. All of it is float64, rounded once, and the report holds
the error of each sum, measured on the example input. Nothing is merged unless it is asked for: weights whose branches
cancel lose accuracy in int8, and a file should not surprise anybody.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.graph.call_arguments import argument, integers, is_number, pair
from coordatt_deploy.graph.editor import Editor
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import Graph, aten, drop_unused_weights, weight
from coordatt_deploy.graph.passes.channel_affine import ChannelAffine, batch_norm_affine
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.manifest import MergedBranches

SUMS: Final = frozenset({aten.add.Tensor, aten.sub.Tensor})
BATCH_NORM: Final = aten.batch_norm.default
CONVOLUTION: Final = aten.conv2d.default
# As for a lowered form: relative to the greatest value, in float64, weights rounded to float32 (2^-24 = 6e-8).
TOLERANCE: Final = 1e-5


@dataclass(frozen=True, slots=True)
class LinearMap:
    """y = kernel * x + bias.

    Attributes:
        kernel: (C_out, C_in / groups, kH, kW) float64.
        bias: (C_out,) float64.
        stride: Of both axes, as are padding and dilation.
        padding: With zeros, on each side.
        dilation: Steps between the values that the kernel meets.
        groups: Of channels.
        nodes: The calls that it stands for.
        convolutions: How many of them are convolutions.
        branches: How many maps were added up to it.
    """

    kernel: torch.Tensor
    bias: torch.Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    nodes: tuple[fx.Node, ...] = ()
    convolutions: int = 0
    branches: int = 1

    def scaled(self, affine: ChannelAffine, node: fx.Node) -> "LinearMap":
        """What follows when *node* applies an affine map to the result."""
        return replace(
            self,
            kernel=self.kernel * affine.scale.reshape(-1, 1, 1, 1),
            bias=self.bias * affine.scale + affine.shift,
            nodes=(*self.nodes, node),
        )


def merge_branches(graph: Graph) -> tuple[Graph, tuple[MergedBranches, ...]]:
    """Return the graph with every sum of linear branches as one convolution; *graph* itself is left alone.

    The layers inside of branches are no layers of the new graph; a sum is, under its own id, as a convolution.

    Args:
        graph: As captured, BatchNorms in place; those that are no part of a branch stay.

    Raises:
        ConversionError: A merged convolution does not compute the sum; report the model.
    """
    module = copy.deepcopy(graph.module)
    editor = Editor(module)
    places: dict[str, Part | None] = {}
    merged: list[tuple[str, tuple[str, ...]]] = []
    gone: set[fx.Node] = set()
    for root in reversed([node for node in module.graph.nodes if node.target in SUMS]):
        found = None if root in gone else _branches(module, root)
        if found is None:
            continue
        source, whole = found
        gone |= set(whole.nodes)
        convolution = _write(editor, root, source, whole)
        inner = [node.name for node in whole.nodes if node is not root]
        places |= {**dict.fromkeys(inner), root.name: Part(convolution.name)}
        merged.insert(0, (root.name, tuple(graph.layer_of(name) or name for name in inner)))
        root.replace_all_uses_with(convolution)
    module.graph.eliminate_dead_code()
    drop_unused_weights(module)
    after = graph.edited(module, places)
    after = replace(
        after, layers=LayerMap(tuple(_renamed(layer, places) for layer in after.layers.layers if layer.parts))
    )
    return after, _reports(graph, after, merged, places)


def _renamed(layer: Layer, places: Mapping[str, Part | None]) -> Layer:
    """A layer of the new graph; a sum that is a convolution now says so."""
    is_merged = any(part is not None and part.tensor == layer.parts[0].tensor for part in places.values())
    return replace(layer, operator="conv2d") if is_merged else layer


def _branches(module: fx.GraphModule, root: fx.Node) -> tuple[fx.Node, LinearMap] | None:
    """The value that all branches of a sum take, and their sum; None where there is no such value."""
    for source in _sources(root):
        found = _linear(module, root, source, root)
        if found is not None and found.convolutions and found.branches > 1:
            return source, found
    return None


def _sources(root: fx.Node) -> list[fx.Node]:
    """What the convolutions in a tree of sums take, nearest to the root first."""
    found: dict[fx.Node, None] = {}
    pending, seen = [root], {root}
    while pending:
        node = pending.pop(0)
        if node.target is CONVOLUTION and isinstance(node.args[0], fx.Node):
            found[node.args[0]] = None
        if node.target in SUMS or node.target in (BATCH_NORM, aten.mul.Tensor):
            inner = [item for item in node.args[:2] if isinstance(item, fx.Node) and item not in seen]
            seen |= set(inner)
            pending += inner
    return list(found)


def _linear(module: fx.GraphModule, node: object, source: fx.Node, root: fx.Node) -> LinearMap | None:
    """Read *node* as a linear map of *source*; None where it is none, or is used outside as well."""
    if node is source:
        return _identity(source)
    if not isinstance(node, fx.Node) or (node is not root and len(node.users) != 1):
        return None
    if node.target is CONVOLUTION:
        return _convolution(module, node) if node.args[0] is source else None
    if node.target is BATCH_NORM:
        inner, affine = _linear(module, node.args[0], source, root), batch_norm_affine(module, node)
        return None if inner is None or affine is None else inner.scaled(affine, node)
    if node.target is aten.mul.Tensor:
        return _with_constant(module, node, source, root)
    if node.target in SUMS and not node.kwargs:
        sides = [_linear(module, item, source, root) for item in node.args[:2]]
        if len(sides) != 2 or None in sides:
            return _with_constant(module, node, source, root)
        first, second = sides
        assert first is not None and second is not None  # noqa: S101, PT018 - by the line above
        if node.target is aten.sub.Tensor:
            second = replace(second, kernel=-second.kernel, bias=-second.bias)
        return _added(first, second, node)
    return None


def _identity(source: fx.Node) -> LinearMap | None:
    shape = source.meta["val"].shape
    if len(shape) != 4 or not isinstance(shape[1], int):
        return None
    channels = int(shape[1])
    return LinearMap(
        torch.ones(channels, 1, 1, 1, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64),
        (1, 1), (0, 0), (1, 1), channels,
    )  # fmt: skip


def _convolution(module: fx.GraphModule, node: fx.Node) -> LinearMap | None:
    kernel, bias = weight(module, argument(node, 1, "weight")), argument(node, 2, "bias")
    own = weight(module, bias)
    if kernel is None or (bias is not None and own is None) or node.meta["val"].ndim != 4:
        return None
    stride, padding, dilation = (
        integers(pair(argument(node, at, name, default)))
        for at, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    groups = argument(node, 6, "groups", 1)
    assert isinstance(groups, int)  # noqa: S101 - by the operator's schema
    zero = torch.zeros(len(kernel), dtype=torch.float64)
    return LinearMap(
        kernel.double(), zero if own is None else own.double(), (stride[0], stride[1]), (padding[0], padding[1]),
        (dilation[0], dilation[1]), groups, (node,), 1,
    )  # fmt: skip


def _with_constant(module: fx.GraphModule, node: fx.Node, source: fx.Node, root: fx.Node) -> LinearMap | None:
    """A product or sum with a number, or with one number per channel: layer scale, or the 0 that a sum begins with."""
    for value, constant in (node.args[:2], node.args[1::-1]):
        inner = _linear(module, value, source, root)
        if inner is None:
            continue
        count = len(inner.bias)
        tensor = torch.tensor(float(constant)) if is_number(constant) else weight(module, constant)
        if tensor is None or not _per_channel(tensor, count):
            return None
        each = tensor.double().flatten().expand(count)
        if node.target is aten.mul.Tensor:
            return inner.scaled(ChannelAffine(each, torch.zeros_like(each)), node)
        if node.target is aten.add.Tensor:
            return inner.scaled(ChannelAffine(torch.ones_like(each), each), node)
        sign = 1.0 if value is node.args[0] else -1.0
        return inner.scaled(ChannelAffine(torch.full_like(each, sign), -sign * each), node)
    return None


def _per_channel(tensor: torch.Tensor, count: int) -> bool:
    """Whether a tensor is one number, or has *count* of them along the channels of an image."""
    return tensor.numel() == 1 or (tensor.ndim >= 3 and tensor.shape[-3] == tensor.numel() == count)


def _added(first: LinearMap, second: LinearMap, node: fx.Node) -> LinearMap | None:
    """The sum of two maps; None where their kernels do not lie over one another."""
    if first.stride != second.stride or len(first.bias) != len(second.bias):
        return None
    groups = math.gcd(first.groups, second.groups)
    axes = [_axis(first, second, index) for index in (0, 1)]
    known = [axis for axis in axes if axis is not None]
    if len(known) != 2:
        return None
    sizes, padding, dilation = ([axis[part] for axis in known] for part in range(3))
    grown = []
    for item in (first, second):
        dense = _regrouped(item, groups)
        kernel = dense.new_zeros(*dense.shape[:2], *sizes)
        rows, columns = (
            slice(start, start + dense.shape[index + 2])
            for index in (0, 1)
            for start in ((padding[index] - item.padding[index]) // dilation[index],)
        )
        kernel[:, :, rows, columns] = dense
        grown.append(kernel)
    return LinearMap(
        grown[0] + grown[1], first.bias + second.bias, first.stride, (padding[0], padding[1]),
        (dilation[0], dilation[1]), groups, (*first.nodes, *second.nodes, node),
        first.convolutions + second.convolutions, first.branches + second.branches,
    )  # fmt: skip


def _axis(first: LinearMap, second: LinearMap, index: int) -> tuple[int, int, int] | None:
    """Size, padding and dilation along one axis of a kernel that holds both in its middle."""
    sizes = [item.kernel.shape[index + 2] for item in (first, second)]
    large, small = (first, second) if sizes[0] >= sizes[1] else (second, first)
    size, less = max(sizes), min(sizes)
    step, ahead = large.dilation[index], large.padding[index] - small.padding[index]
    fits = less == 1 or small.dilation[index] == step
    return (size, large.padding[index], step) if fits and 2 * ahead == step * (size - less) else None


def _regrouped(item: LinearMap, groups: int) -> torch.Tensor:
    """The kernel of fewer groups that computes the same; zeros stand between the old ones."""
    kernel, inside = item.kernel, item.groups // groups
    outs, ins = kernel.shape[0] // item.groups, kernel.shape[1]
    wide = kernel.new_zeros(kernel.shape[0], ins * inside, *kernel.shape[2:])
    for group in range(item.groups):
        rows = slice(group * outs, (group + 1) * outs)
        start = group % inside * ins
        wide[rows, start : start + ins] = kernel[rows]
    return wide


def _write(editor: Editor, root: fx.Node, source: fx.Node, whole: LinearMap) -> fx.Node:
    dtype = root.meta["val"].dtype
    kernel = editor.constant(root, "reparameterized.weight", whole.kernel.to(dtype))
    bias = editor.constant(root, "reparameterized.bias", whole.bias.to(dtype))
    return editor.call(root, CONVOLUTION, source, kernel, bias, list(whole.stride), list(whole.padding),
                       list(whole.dilation), whole.groups)  # fmt: skip


def _reports(
    before: Graph, after: Graph, merged: list[tuple[str, tuple[str, ...]]], places: Mapping[str, Part | None]
) -> tuple[MergedBranches, ...]:
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(before.inputs, before.example, strict=True)}
    now = {root: part.tensor for root, _ in merged if (part := places[root]) is not None}
    old = run(before, feeds, nodes=frozenset(now))
    new = run(after, feeds, nodes=frozenset(now.values()))
    reports = []
    for root, layers in merged:
        error = float(np.max(np.abs(new[now[root]] - old[root])))
        scale = float(np.max(np.abs(old[root])))
        relative = error / scale if scale else error
        layer = before.layer_of(root) or root
        if not relative <= TOLERANCE:
            raise ConversionError(
                f"the branches of {layer} merged into one convolution compute something else: relative error"
                f" {relative:.1e}, {TOLERANCE:.0e} allowed; export without --reparameterize and report the model"
            )
        reports.append(MergedBranches(layer, layers, error, relative))
    return tuple(reports)
