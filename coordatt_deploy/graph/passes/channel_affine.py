"""Put an affine map of channels into the weights of the layer before it, or of the layer behind it.

    affine:   z = s * y + t                      per channel; of a BatchNorm s = gamma / sqrt(var + epsilon),
                                                 t = beta - mean * s
    before:   y = W * x + b         ->   z = (s W) * x + (s b + t)                  W scaled by output channel
    behind:   v = W * z + b         ->   v = (W s) * y + (b + sum of W t)           W scaled by input channel

A layer behind that pads its input with zeros pads z, not y; then the sum holds at the border only where t is zero.
Everything is computed in float64 and rounded once.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integers, same_size, source
from coordatt_deploy.graph.graph import aten, attach, overloads, weight
from coordatt_deploy.graph.operators import Trait

LAYERS: Final = overloads(Trait.FOLDS_BATCH_NORM)
TRANSPOSED: Final = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
LINEAR: Final = aten.linear.default
FOLDED: Final = "_folded"  # ending of a weight that stands beside the one it replaces


@dataclass(frozen=True, slots=True)
class ChannelAffine:
    """z = scale * y + shift, both (C,) float64."""

    scale: torch.Tensor
    shift: torch.Tensor


def batch_norm_affine(module: fx.GraphModule, norm: fx.Node) -> ChannelAffine | None:
    """Return what a BatchNorm does to each channel; None where its statistics or weights are not constant."""
    gamma, beta, mean, variance = (weight(module, item) for item in norm.args[1:5])
    given = [item for item in norm.args[1:5] if item is not None]
    if norm.args[5] is True or mean is None or variance is None or any(weight(module, item) is None for item in given):
        return None
    epsilon = norm.args[7]
    assert isinstance(epsilon, (int, float))  # noqa: S101 - by the operator's schema
    scale = torch.rsqrt(variance.double() + epsilon)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    return ChannelAffine(scale, shift if beta is None else shift + beta.double())


def layer_before(norm: fx.Node) -> tuple[object, tuple[fx.Node, ...]]:
    """Return what stands before an affine map of channels, and the flattenings of rows in between, last first.

    The outputs of a linear layer are the last axis; flattened to rows, (N, tokens, C) to (N * tokens, C), they are the
    channels of a BatchNorm of two axes.
    """
    between: list[fx.Node] = []
    node = norm.args[0]
    while isinstance(node, fx.Node) and node.target in FLATTENINGS and norm.meta["val"].ndim == 2:
        before = source(node)
        if len(node.users) > 1 or not same_size(node.meta["val"].shape[-1], before.meta["val"].shape[-1]):
            break
        between.append(node)
        node = before
    linear = isinstance(node, fx.Node) and node.target is LINEAR
    return (node, tuple(between)) if between and linear else (norm.args[0], ())


def not_before(module: fx.GraphModule, layer: object, affine: fx.Node, *, flattened: bool = False) -> str | None:
    """Why the layer before an affine map cannot take it in; None if it can.

    Args:
        module: That both are in.
        layer: What stands before it.
        affine: The map.
        flattened: Whether a linear layer's rows are flattened in between; see ``layer_before``.
    """
    if not isinstance(layer, fx.Node) or layer.target not in LAYERS:
        before = getattr(layer, "name", "an input")
        return f"it follows {before}, not a convolution"
    if len(layer.users) > 1:
        others = ", ".join(user.name for user in layer.users if user is not affine)
        return f"the convolution's own output is also used by {others}"
    kernel, bias = weight(module, argument(layer, 1, "weight")), argument(layer, 2, "bias")
    if kernel is None or (bias is not None and weight(module, bias) is None):
        return "the convolution's weight is computed while the model runs"
    if layer.meta["val"].ndim != kernel.ndim and not flattened:
        return f"its channels are not the outputs of {layer.name}"
    return None


def fold_before(module: fx.GraphModule, layer: fx.Node, affine: ChannelAffine) -> None:
    """Give the layer before an affine map weights of its own: a layer that is used twice may have two such maps."""
    kernel, bias = (weight(module, argument(layer, at, name)) for at, name in ((1, "weight"), (2, "bias")))
    assert kernel is not None  # noqa: S101 - not_before has refused these
    own = torch.zeros_like(affine.shift) if bias is None else bias.double()
    _set_weights(module, layer, scaled_outputs(layer, kernel, affine.scale), own * affine.scale + affine.shift)


def scaled_outputs(layer: fx.Node, kernel: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the kernel in float64 with each output channel scaled."""
    if layer.target not in TRANSPOSED:  # (C_out, C_in / groups, ...)
        return kernel.double() * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    groups = argument(layer, 6, "groups", 1)  # (C_in, C_out / groups, ...)
    assert isinstance(groups, int)  # noqa: S101 - by the operator's schema
    by_group = kernel.double().reshape(groups, -1, *kernel.shape[1:])
    return (by_group * scale.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2))).reshape(kernel.shape)


@dataclass(frozen=True, slots=True)
class Follower:
    """The layer behind an affine map, and what stands between.

    Attributes:
        layer: A convolution without padding, or a linear layer.
        between: A flattening of everything behind the batch; None where the layer takes the map's result itself.
        positions: How many values of one channel lie beside each other in the input of the layer.
    """

    layer: fx.Node
    between: fx.Node | None
    positions: int


def follower(module: fx.GraphModule, node: fx.Node, affine: ChannelAffine) -> Follower | None:
    """Return the layer that can take in the affine map *node* in front of it; None if there is none."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    between, positions = None, 1
    if user.target in FLATTENINGS:
        shapes = [tuple(item.meta["val"].shape) for item in (node, user)]
        static = all(isinstance(size, int) for shape in shapes for size in shape[1:])
        if not static or len(user.users) != 1 or user.args[0] is not node or len(shapes[1]) != 2:
            return None
        if not same_size(shapes[0][0], shapes[1][0]):
            return None
        positions = shapes[1][1] // shapes[0][1]
        between, (user,) = user, user.users
    last = between or node
    if user.target is not LINEAR and (between is not None or user.target not in CONVOLUTIONS):
        return None
    kernel, bias = weight(module, argument(user, 1, "weight")), argument(user, 2, "bias")
    if user.args[0] is not last or kernel is None or (bias is not None and weight(module, bias) is None):
        return None
    padded = user.target is not LINEAR and any(integers(argument(user, 4, "padding", 0)))
    fits = last.meta["val"].ndim == kernel.ndim and not (padded and bool(affine.shift.any()))
    return Follower(user, between, positions) if fits else None


CONVOLUTIONS: Final = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
FLATTENINGS: Final = frozenset({aten.flatten.using_ints, aten.view.default, aten.reshape.default})


def fold_behind(module: fx.GraphModule, found: Follower, affine: ChannelAffine) -> None:
    """Give the layer behind an affine map weights that take it in."""
    layer = found.layer
    kernel, bias = (weight(module, argument(layer, at, name)) for at, name in ((1, "weight"), (2, "bias")))
    assert kernel is not None  # noqa: S101 - follower has looked
    scale, shift = (item.repeat_interleave(found.positions) for item in (affine.scale, affine.shift))
    groups = 1 if layer.target is LINEAR else argument(layer, 6, "groups", 1)
    assert isinstance(groups, int)  # noqa: S101 - by the operator's schema
    by_group = kernel.double().reshape(groups, -1, *kernel.shape[1:])  # (groups, C_out / groups, C_in / groups, ...)
    spread = [item.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2)) for item in (scale, shift)]
    added = (by_group * spread[1]).flatten(2).sum(2).flatten()
    own = added if bias is None else bias.double() + added
    kept = bias is None and not bool(affine.shift.any())
    _set_weights(module, layer, (by_group * spread[0]).reshape(kernel.shape), None if kept else own)
    node = found.between or layer
    node.replace_input_with(source(node), source(source(node)))


def _set_weights(module: fx.GraphModule, layer: fx.Node, kernel: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Let *layer* read weights of its own, under names that ``give_plain_names`` puts right."""
    read = argument(layer, 1, "weight")
    assert isinstance(read, fx.Node)  # noqa: S101 - it has been looked up
    old = weight(module, read)
    assert old is not None  # noqa: S101
    path, dot, leaf = str(read.target).removesuffix(FOLDED).rpartition(".")
    names = [leaf, "bias" if leaf == "weight" else f"{leaf}_bias"]
    if len(read.users) > 1:
        names = [f"{name}_{layer.name}" for name in names]
    nodes: list[fx.Node | None] = []
    for name, tensor in zip(names, (kernel, bias), strict=True):
        if tensor is None:
            nodes.append(None)
            continue
        attach(module, f"{path}{dot}{name}{FOLDED}", tensor.to(old.dtype))
        with module.graph.inserting_before(layer):
            node = module.graph.get_attr(f"{path}{dot}{name}{FOLDED}")
        node.meta["val"] = read.meta["val"].new_empty(tuple(tensor.shape))
        nodes.append(node)
    layer.args = (layer.args[0], *nodes, *layer.args[3:])
    layer.kwargs = {key: value for key, value in layer.kwargs.items() if key not in ("weight", "bias")}


def give_plain_names(module: fx.GraphModule) -> None:
    """Give the folded weights the names of those that they replace, where nothing reads these any more."""
    taken = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target).endswith(FOLDED):
            plain = str(node.target).removesuffix(FOLDED)
            if plain not in taken:
                tensor = weight(module, node)
                assert tensor is not None  # noqa: S101 - get_attr of a buffer attached above
                path, _, leaf = plain.rpartition(".")
                owner = module.get_submodule(path)
                for name in (leaf, f"{leaf}{FOLDED}"):
                    if hasattr(owner, name):
                        delattr(owner, name)
                attach(module, plain, tensor)
                node.target = plain
