"""Leave no BatchNorm in a captured graph: each goes into a layer, or is written as a product and a sum.

    convolution:  y = W * x + b
    batch norm:   z = gamma * (y - mean) / std + beta,   std = sqrt(var + epsilon)
    folded:       z = (W * gamma / std) * x + (b - mean) * gamma / std + beta

torch calls this *fuse*, structural re-parameterisation is another word for it. In this order:

1. into the convolution, transposed convolution or linear layer before it;
2. into the convolution or linear layer behind it, where that is exact (``channel_affine``);
3. as ``scale * y + shift`` per channel, which every format has;
4. one that keeps no running statistics, as what it computes from its input.

The factors are computed in float64 and rounded once. The report says which way each went, with its measured error.
"""

import copy
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from torch import fx
from torch.fx.node import Argument

from coordatt_deploy.graph.call_arguments import source
from coordatt_deploy.graph.editor import Editor
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import Graph, aten, drop_unused_weights, erase_unused_reads, weight
from coordatt_deploy.graph.passes.channel_affine import (
    ChannelAffine,
    Follower,
    batch_norm_affine,
    fold_before,
    fold_behind,
    follower,
    give_plain_names,
    layer_before,
    not_before,
)
from coordatt_deploy.layer_map import Part, restore
from coordatt_deploy.manifest import FoldedBatchNorm, FoldForm, FoldReport

BATCH_NORM: Final = aten.batch_norm.default


def fold_batchnorms(graph: Graph) -> tuple[Graph, FoldReport]:
    """Return the graph without BatchNorm, and what was done; *graph* itself is left alone."""
    module = copy.deepcopy(graph.module)
    folding = _Folding(graph, module)
    for norm in [node for node in module.graph.nodes if node.target is BATCH_NORM]:
        folding.take(norm)
    erase_unused_reads(module)
    give_plain_names(module)
    drop_unused_weights(module)
    folded = graph.edited(module, folding.places, folding.reasons)
    return folded, FoldReport.of(_errors(graph, folded, folding.done))


def form_of(module: fx.GraphModule, norm: fx.Node) -> tuple[FoldForm, str | None]:
    """Return what becomes of a BatchNorm, and why it stays where no layer takes it in."""
    affine = batch_norm_affine(module, norm)
    if affine is None and norm.args[5] is True:
        return FoldForm.INPUT_STATISTICS, "it keeps no running statistics and takes those of its input"
    layer, between = layer_before(norm)
    reason = not_before(module, layer, norm, flattened=bool(between))
    if affine is None:
        return FoldForm.SCALE_AND_SHIFT, "its statistics or weights are computed while the model runs"
    if reason is None:
        return FoldForm.PRECEDING, None
    return (FoldForm.SCALE_AND_SHIFT, reason) if follower(module, norm, affine) is None else (FoldForm.FOLLOWING, None)


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of one BatchNorm: the layer that holds it now, its own layer id, and how."""

    layer: str
    batch_norm: str
    form: FoldForm


@dataclass(slots=True)
class _Folding:
    """Edits *module* and keeps account of where the values are.

    Attributes:
        graph: The graph as captured.
        module: The copy that is edited.
        places: See ``Graph.edited``.
        reasons: See ``Graph.edited``.
        done: In execution order.
        held: The old nodes whose values a layer stood for before it took in what follows, by the layer's name.
    """

    graph: Graph
    module: fx.GraphModule
    places: dict[str, Part | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    done: list[_Done] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=dict)

    def take(self, norm: fx.Node) -> None:
        """Take one BatchNorm out of the graph."""
        form, _ = form_of(self.module, norm)
        affine = batch_norm_affine(self.module, norm)
        layer, between = layer_before(norm)
        if form is FoldForm.PRECEDING and affine is not None and isinstance(layer, fx.Node):
            self._into_preceding(layer, between, norm, affine)
        elif form is FoldForm.FOLLOWING and affine is not None:
            found = follower(self.module, norm, affine)
            assert found is not None  # noqa: S101 - form_of has found it
            self._into_following(found, norm, affine)
        else:
            editor = Editor(self.module)
            written = _by_input(editor, norm) if form is FoldForm.INPUT_STATISTICS else _written(editor, norm, affine)
            self.places[norm.name] = Part(written.name)
            self._note(norm.name, norm.name, form)
            norm.replace_all_uses_with(written)
        self.module.graph.erase_node(norm)

    def _into_preceding(
        self, layer: fx.Node, between: tuple[fx.Node, ...], norm: fx.Node, affine: ChannelAffine
    ) -> None:
        fold_before(self.module, layer, affine)
        last = between[0] if between else layer
        last.meta["val"] = norm.meta["val"]
        for name in (*self.held.setdefault(layer.name, [layer.name]), *(node.name for node in between)):
            self.places[name] = None
            self.reasons[name] = f"->{self._layer(norm.name)}"
        self.held[layer.name].append(norm.name)
        self.places[norm.name] = Part(last.name)
        self._note(layer.name, norm.name, FoldForm.PRECEDING)
        norm.replace_all_uses_with(last)

    def _into_following(self, found: Follower, norm: fx.Node, affine: ChannelAffine) -> None:
        fold_behind(self.module, found, affine)
        for node in (norm, found.between):
            if node is not None:
                self.places[node.name] = None
                self.reasons[node.name] = f"->{self._layer(found.layer.name)}"
        self._note(found.layer.name, norm.name, FoldForm.FOLLOWING)

    def _note(self, layer: str, norm: str, form: FoldForm) -> None:
        self.done.append(_Done(self._layer(layer), self._layer(norm), form))

    def _layer(self, name: str) -> str:
        return self.graph.layer_of(name) or name


def _written(editor: Editor, norm: fx.Node, affine: ChannelAffine | None) -> fx.Node:
    """A product and a sum per channel; the sum is left out where it adds nothing."""
    value = source(norm)
    shape = [1, -1, *[1] * (norm.meta["val"].ndim - 2)]
    if affine is not None:
        scale, shift = (
            editor.constant(norm, name, tensor.reshape(shape).to(norm.meta["val"].dtype))
            for name, tensor in (("scale", affine.scale), ("shift", affine.shift))
        )
        product = editor.call(norm, aten.mul.Tensor, value, scale)
        return editor.call(norm, aten.add.Tensor, product, shift) if bool(affine.shift.any()) else product
    gamma, beta, mean, variance, epsilon = (*norm.args[1:5], norm.args[7])
    scale = editor.call(norm, aten.rsqrt.default, editor.call(norm, aten.add.Tensor, variance, epsilon))
    centred = editor.call(norm, aten.sub.Tensor, value, editor.call(norm, aten.reshape.default, mean, shape))
    product = editor.call(norm, aten.mul.Tensor, centred, editor.call(norm, aten.reshape.default, scale, shape))
    return _weighted(editor, norm, product, gamma, beta)


def _by_input(editor: Editor, norm: fx.Node) -> fx.Node:
    """Normalise by the mean and variance of the input itself, over all axes but the channels."""
    value = source(norm)
    sizes = norm.meta["val"].shape
    # One image has nothing to average over the batch; files for phones are faster, and more of them, with two axes.
    axes = [axis for axis in range(len(sizes)) if axis != 1 and not (axis == 0 and sizes[0] == 1)]
    centred = editor.call(norm, aten.sub.Tensor, value, editor.call(norm, aten.mean.dim, value, axes, True))
    square = editor.call(norm, aten.mul.Tensor, centred, centred)
    variance = editor.call(norm, aten.mean.dim, square, axes, True)
    scale = editor.call(norm, aten.rsqrt.default, editor.call(norm, aten.add.Tensor, variance, norm.args[7]))
    product = editor.call(norm, aten.mul.Tensor, centred, scale)
    return _weighted(editor, norm, product, norm.args[1], norm.args[2])


def _weighted(editor: Editor, norm: fx.Node, value: fx.Node, gamma: Argument, beta: Argument) -> fx.Node:
    shape = [1, -1, *[1] * (norm.meta["val"].ndim - 2)]
    for name, item, target in (("scale", gamma, aten.mul.Tensor), ("shift", beta, aten.add.Tensor)):
        if item is not None:
            tensor = weight(editor.module, item)
            if tensor is None:
                factor = editor.call(norm, aten.reshape.default, item, shape)
            else:
                factor = editor.constant(norm, name, tensor.reshape(shape))
            value = editor.call(norm, target, value, factor)
    return value


def _errors(before: Graph, after: Graph, done: list[_Done]) -> tuple[FoldedBatchNorm, ...]:
    """Measure each BatchNorm at the layer where its value is now: both graphs run in float64 on the example input."""
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(before.inputs, before.example, strict=True)}
    where = {layer.layer_id: layer.parts[0].tensor for layer in before.layers.layers}
    judged = {item.batch_norm: after.layers.resolved(item.batch_norm) for item in done}
    seen = {norm: layer for norm, layer in judged.items() if layer is not None}
    old = run(before, feeds, nodes=frozenset(where[layer.layer_id] for layer in seen.values()))
    new = run(after, feeds, nodes=frozenset(part.tensor for layer in seen.values() for part in layer.parts))
    report = []
    for item in done:
        layer = seen[item.batch_norm]
        value = old[where[layer.layer_id]]
        error = float(np.max(np.abs(restore(layer, new) - value)))
        scale = float(np.max(np.abs(value)))
        report.append(FoldedBatchNorm(item.layer, item.batch_norm, error, error / scale if scale else error, item.form))
    return tuple(report)
