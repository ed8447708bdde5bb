"""Rewrite a copy of a graph, and keep account of where each layer's value is afterwards."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import fx
from torch.fx.node import Argument, Target

from coordatt_deploy.graph.editor import fake_mode, result_of
from coordatt_deploy.graph.graph import Graph, attach, drop_unused_weights, weight
from coordatt_deploy.layer_map import Layer, LayerMap, Part

LETTERS: Final = "NCHWDEFG"  # of the axes of a value that did not move, as many as it has


@dataclass(frozen=True, slots=True)
class Placed:
    """A new node that holds an old value.

    Attributes:
        node: The new node.
        axes: One letter per axis of its tensor, as in ``strips``.
        factor: tensor = factor * old value.
        channels: First and one past the last channel of the tensor that belong to the value; None for all.
    """

    node: fx.Node
    axes: str
    factor: float = 1.0
    channels: tuple[int, int] | None = None

    def part(self, axes: str) -> Part:
        """Return the part of a layer whose value lies as *axes*."""
        order = axes_between(self.axes, axes)
        identity = order == tuple(range(len(order))) and len(self.axes) == len(axes)
        return Part(self.node.name, None if identity else order, self.factor, self.channels)


def axes_between(tensor: str, value: str) -> tuple[int, ...]:
    """Return, for each axis of a tensor, the axis of the value that it is; axes of size 1 fill the gaps.

    >>> axes_between("NC1P", "NCP1")
    (0, 1, 3, 2)
    """
    free = [axis for axis, letter in enumerate(value) if letter == "1" or letter not in tensor]
    order = [value.index(letter) if letter != "1" and letter in value else -1 for letter in tensor]
    order = [axis if axis >= 0 else free.pop(0) if free else -1 for axis in order]
    return tuple([axis for axis in order if axis >= 0] + free)


class Rewriter:
    """Edits a copy of ``graph.module``; the graph itself is left alone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.module = copy.deepcopy(graph.module)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.module.graph.nodes}
        self.mode = fake_mode(self.module)
        self._ids = {part.tensor: layer.layer_id for layer in reversed(graph.layers.layers) for part in layer.parts}
        self._places: dict[str, tuple[tuple[Part, ...], int]] = {}
        self._reasons: dict[str, str] = {}
        self._like: fx.Node | None = None

    def before(self, node: fx.Node, like: fx.Node | None = None) -> AbstractContextManager[object]:
        """Insert what is called from here on before *node*, as if the module of *like* had called it."""
        self._like = like
        return self.module.graph.inserting_before(node)

    def call(self, target: Target, *args: Argument, **kwargs: Argument) -> fx.Node:
        """Add a call, with the shape of its result."""
        assert callable(target)  # noqa: S101 - targets of other nodes are names
        node = self.module.graph.call_function(target, args, kwargs)
        node.meta["val"] = result_of(node, self.module, self.mode)
        for key in ("nn_module_stack", "stack_trace", "source_line"):
            if self._like is not None and key in self._like.meta:
                node.meta[key] = self._like.meta[key]
        return node

    def constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """Read a weight of this dotted name, or of a free one like it; the same tensor is stored once."""
        stored = dict([*self.module.named_buffers(), *self.module.named_parameters()])
        free, index = name, 2
        while free in stored and not _same(stored[free], tensor):
            free, index = f"{name}_{index}", index + 1
        if free not in stored:
            attach(self.module, free, tensor.detach().clone().contiguous())
        node = self.module.graph.get_attr(free)
        node.meta["val"] = self.mode.from_tensor(tensor.detach().contiguous(), static_shapes=True)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give the users of *old* the value of *new*; whoever looks the old name up from now on finds *new*."""
        old.replace_all_uses_with(new)
        self.nodes[old.name] = new

    def weight(self, node: object) -> torch.Tensor | None:
        """Return the tensor behind a ``get_attr`` node."""
        return weight(self.module, node)

    def put(self, name: str, axes: str, values: Sequence[Placed], along: str = "N") -> None:
        """Record that the old node's value, lying as *axes*, is now in *values*, joined along one axis."""
        self._places[name] = (tuple(value.part(axes) for value in values), axes.index(along))

    def fuse(self, name: str, into: str) -> None:
        """Record that the old node *name* is judged at the layer of the old node *into*."""
        if into in self._ids:
            self._reasons[name] = f"->{self._ids[into]}"

    def finish(self) -> Graph:
        """Drop what nothing uses any more and return the new graph with its layer map."""
        self.module.graph.eliminate_dead_code()
        drop_unused_weights(self.module)
        names = {node.name for node in self.module.graph.nodes}
        carried = tuple(self._carried(layer, names) for layer in self.graph.layers.layers)
        self.module.graph.lint()
        self.module.recompile()
        return replace(self.graph, module=self.module, layers=LayerMap(carried))

    def _carried(self, layer: Layer, names: set[str]) -> Layer:
        moved: list[Layer] = []
        for part in layer.parts:
            parts, axis = self._places.get(part.tensor, ((Part(part.tensor),) if part.tensor in names else (), 0))
            single = LayerMap((replace(layer, parts=(part,)),))
            if not parts:
                return single.carried({}, self._reasons).layers[0]
            axis = axis if part.axes is None else part.axes[axis]
            moved += [replace(single.carried({part.tensor: new}).layers[0], axis=axis) for new in parts]
        if len(moved) <= len(layer.parts):
            return replace(layer, parts=tuple(item.parts[0] for item in moved))
        return replace(layer, parts=tuple(item.parts[0] for item in moved), axis=moved[0].axis)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
