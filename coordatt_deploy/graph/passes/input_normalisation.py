"""Fold the normalisation of the input into the first convolution."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.graph.call_arguments import argument, input_node, integer, pair
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import Graph, aten, op_name
from coordatt_deploy.graph.rewriter import Rewriter
from coordatt_deploy.manifest import BakeReport

SCALE: Final = "normalisation.scale"
SHIFT: Final = "normalisation.shift"


@dataclass(frozen=True, slots=True)
class _Normalisation:
    """What a convolution is to take in: x -> a * x + b for each channel, and with it the order of the channels.

    Attributes:
        a: (C,) float64.
        b: (C,) float64.
        reverse: Whether the order of the channels is reversed first.
        form: See ``BakeReport``.
    """

    a: torch.Tensor
    b: torch.Tensor
    reverse: bool
    form: str


def fold_normalisation(graph: Graph) -> tuple[Graph, BakeReport]:
    """Fold the normalisation that ``bake`` wrote into the convolutions that take the image.

    Args:
        graph: Baked; BatchNorm folded or not.

    Raises:
        UsageError: Something else than convolutions takes the image; the text says what, and what to do.
        ConversionError: The graph has no normalisation that ``bake`` wrote.
    """
    rewriter = Rewriter(graph)
    image = next(node for node in rewriter.module.graph.nodes if node.op == "placeholder")
    flip, scale, shift = _baked(image)
    last = [node for node in (flip, scale, shift) if node is not None][-1]
    convolutions = list(last.users)
    reason = next((why for node in convolutions if (why := _unsupported_reason(rewriter, node)) is not None), None)
    if reason is not None:
        raise UsageError(f"preprocessing cannot be baked in: {reason}; export without --bake-preprocessing")
    a, b = (_per_channel(rewriter, node) for node in (scale, shift))
    padded = any(any(pair(argument(node, 4, "padding", 0))) for node in convolutions)
    greys = -b / a
    # Scale and shift are float32 by now: greys that differ in their seventh digit are one grey.
    alike = bool(torch.allclose(greys, greys.mean(), rtol=1e-6, atol=0.0))
    form = "folded" if not padded else ("padded" if alike else "shifted")
    with rewriter.before(flip or scale):
        pixels = image
        if form == "shifted":
            lift = (greys.flip(0) if flip is not None else greys).neg().to(torch.float32).reshape(1, -1, 1, 1)
            pixels = rewriter.call(aten.add.Tensor, image, rewriter.constant("normalisation.lift", lift))
    normalisation = _Normalisation(a, b, flip is not None, form)
    for node in convolutions:
        _fold(rewriter, node, pixels, normalisation)
    layers = tuple(graph.layer_of(node.name) or node.name for node in convolutions)
    folded = rewriter.finish()
    left = {"folded": "nothing of it is left", "padded": "the image is padded with the grey of the mean",
            "shifted": "the means differ by channel, so one sum on the image is left"}[form]  # fmt: skip
    return folded, BakeReport(
        layers, form, _error(graph, folded), f"normalisation is part of {', '.join(layers)}; {left}"
    )


def is_baked(graph: Graph) -> bool:
    """Whether ``bake`` wrote a normalisation into the graph that is not folded yet."""
    return any(node.target == SCALE for node in graph.module.graph.nodes if node.op == "get_attr")


def baked_nodes(graph: Graph) -> frozenset[str]:
    """The operators that ``bake`` wrote into the graph, normalisation and softmax, which are no layers of the model."""
    if not is_baked(graph):
        return frozenset()
    nodes = list(graph.module.graph.nodes)
    image = next(node for node in nodes if node.op == "placeholder")
    returned = next(node for node in nodes if node.op == "output").all_input_nodes
    written = [node for node in _baked(image) if node is not None]
    return frozenset(node.name for node in (*written, *(node for node in returned if op_name(node) == "softmax")))


def _baked(image: fx.Node) -> tuple[fx.Node | None, fx.Node, fx.Node]:
    """The operators that ``bake`` wrote behind the image: flip if any, product, sum."""
    readers = [node for node in image.users if not str(node.target).startswith("aten.sym_size")]
    first = readers[0] if len(readers) == 1 else image
    flip = first if op_name(first) == "flip" else None
    scale = next(iter(flip.users)) if flip is not None else first
    shift = next(iter(scale.users), scale)
    names = [str(node.args[1].target) if isinstance(node.args[1], fx.Node) else "" for node in (scale, shift)
             if len(node.args) > 1]  # fmt: skip
    if names != [SCALE, SHIFT]:
        raise ConversionError("the graph has no normalisation of its own to fold; bake it first")
    return flip, scale, shift


def _per_channel(rewriter: Rewriter, node: fx.Node) -> torch.Tensor:
    """The constant of a product or sum that ``bake`` wrote: (C,) float64."""
    constant = rewriter.weight(node.args[1])
    assert constant is not None  # noqa: S101 - _baked has looked
    return constant.double().flatten()


def _unsupported_reason(rewriter: Rewriter, node: fx.Node) -> str | None:
    """Why a user of the normalised image cannot take the normalisation in; None if it can."""
    where = rewriter.graph.layer_of(node.name) or node.name
    if node.op == "output":
        return "the model gives its own input back"
    if node.target is not aten.conv2d.default:
        what = op_name(node) if op_name(node) != "conv2d" else "a convolution with padding given by name"
        named = where.lstrip(":")
        named += "" if named == what else f" ({what})"
        return f"{named} takes the image; only convolutions can take the normalisation in"
    if rewriter.weight(node.args[1]) is None:
        return f"the kernel of {where} is computed while the model runs"
    return None


def _fold(rewriter: Rewriter, node: fx.Node, pixels: fx.Node, normalisation: _Normalisation) -> None:
    """Give a convolution the factor of the normalisation, and all of it unless a sum on the image is left."""
    a, b, form = normalisation.a, normalisation.b, normalisation.form
    grey = float((-b / a).mean()) if form == "padded" else None
    read = input_node(node, 1, "weight")
    kernel, bias = rewriter.weight(read), rewriter.weight(input_node(node, 2, "bias"))
    assert read is not None  # noqa: S101 - _unsupported_reason has looked
    assert kernel is not None  # noqa: S101
    stride, padding = argument(node, 3, "stride", [1, 1]), argument(node, 4, "padding", [0, 0])
    dilation, groups = argument(node, 5, "dilation", [1, 1]), integer(node, 6, "groups", 1)
    shape = kernel.shape  # (C_out, C_in / groups, kH, kW)
    by_group = kernel.double().reshape(groups, shape[0] // groups, *shape[1:])
    spread = by_group * a.reshape(groups, 1, -1, 1, 1)
    name = str(read.target).removesuffix("_folded").removesuffix(".weight")
    new_bias = None if bias is None else bias.double()
    if form != "shifted":
        lift = (by_group * b.reshape(groups, 1, -1, 1, 1)).sum((2, 3, 4)).flatten()
        new_bias = lift if new_bias is None else new_bias + lift
    new_kernel = spread.reshape(shape)
    if normalisation.reverse:
        if groups != 1:
            raise UsageError(f"preprocessing cannot be baked in: {name} filters BGR channels in groups")
        new_kernel = new_kernel.flip(1)
    with rewriter.before(node, like=node):
        if grey is not None and any(pair(padding)):
            height, width = pair(padding)
            pixels = rewriter.call(aten.constant_pad_nd.default, pixels, [width, width, height, height], grey)
            padding = [0, 0]
        weight = rewriter.constant(f"{name}.weight_of_pixels", new_kernel.to(kernel.dtype))
        constant = None if new_bias is None else rewriter.constant(f"{name}.bias_of_pixels", new_bias.to(kernel.dtype))
    node.args = (pixels, weight, constant, stride, padding, dilation, groups)
    node.kwargs = {}


def _error(before: Graph, after: Graph) -> float:
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(before.inputs, before.example, strict=True)}
    old, new = run(before, feeds), run(after, feeds)
    scales = {name: float(np.max(np.abs(value))) or 1.0 for name, value in old.items()}
    return max(
        float(np.max(np.abs(np.asarray(new[name], np.float64) - value))) / scales[name] for name, value in old.items()
    )
