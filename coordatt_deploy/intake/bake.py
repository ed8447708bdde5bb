"""Let the network take the pixels as they come from a camera: normalisation inside, folded into the first convolution.

    normalised:   x = a * p + b,   a = (high - low) / (255 * std),   b = (low - mean) / std,   p in 0...255
    convolution:  y = W * x + c   =   (W * a) * (p + b / a) + c
    without padding:              =   (W * a) * p + (c + sum(W * b))

A padded convolution puts zeros around x. Around p that is -b / a, the grey that the mean stands for, and not zero:
adding ``sum(W * b)`` to the bias alone would be wrong all along the border. Where every channel has the same grey, p is
padded with it before the convolution; where they differ, the shift b / a stays as one sum on the image and only the
factor is folded. Both are exact. Anything between the image and its convolutions is refused with the reason.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn

from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.graph.calls import argument, kind, pair
from coordatt_deploy.graph.capture import Graph, aten, run, tensor_outputs
from coordatt_deploy.graph.rewriter import Rewriter
from coordatt_deploy.intake.source import Source
from coordatt_deploy.specs import Preprocessing, to_json

PIXELS: Final = (0.0, 255.0)
PROBABILITIES: Final = "probabilities"
SCALE: Final = "normalisation.scale"
SHIFT: Final = "normalisation.shift"


@dataclass(frozen=True, slots=True)
class Affine:
    """x = scale * p + shift per channel of the tensor, and whether the channels are the other way round."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    reverse: bool

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> "Affine":
        """What *preprocessing* does to an RGB pixel value of 0...255 after resizing."""
        low, high = preprocessing.input_range
        means, stds = preprocessing.mean, preprocessing.std
        return cls(
            scale=tuple((high - low) / (255 * std) for std in stds),
            shift=tuple((low - mean) / std for mean, std in zip(means, stds, strict=True)),
            reverse=preprocessing.colour == "BGR",
        )

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift as (1, C, 1, 1)."""
        return tuple(torch.tensor(values, dtype=dtype).reshape(1, -1, 1, 1) for values in (self.scale, self.shift))  # type: ignore[return-value]


class BakedModule(nn.Module):
    """A module behind its normalisation, and before a softmax if one is asked for."""

    def __init__(self, module: nn.Module, affine: Affine, softmax: bool) -> None:
        super().__init__()
        self.module, self.affine, self.softmax = module, affine, softmax

    def forward(self, pixels: torch.Tensor, *others: torch.Tensor) -> Any:
        """Take (1, 3, H, W) of 0...255, in RGB."""
        scale, shift = self.affine.tensors(pixels.dtype)
        image = pixels.flip(1) if self.affine.reverse else pixels
        returned = self.module(image * scale + shift, *others)
        return tensor_outputs(returned)[0].softmax(1) if self.softmax else returned


@dataclass(frozen=True, slots=True)
class BakeReport:
    """What became of the normalisation.

    Attributes:
        layers: Layer ids of the convolutions that it was folded into.
        form: ``folded`` (nothing is left of it), ``padded`` (a padding with grey is left), or ``shifted`` (one sum on
            the image is left).
        max_relative_error: Greatest difference of an output to the normalisation done apart, both in float64, over the
            output's greatest value.
        remark: One sentence for the user.
    """

    layers: tuple[str, ...]
    form: str
    max_relative_error: float
    remark: str


def bake(source: Source, graph: Graph, *, softmax: bool = False) -> tuple[Source, Graph]:
    """Return the source and its graph with pixels as input: normalisation (and softmax) as operators of their own.

    This is the reference of a baked bundle; ``fold_normalisation`` makes it fast.

    Args:
        source: Its first input takes images of three channels.
        graph: Captured from *source*.
        softmax: Also turn a single matrix of logits into probabilities.

    Raises:
        UsageError: The model takes no RGB images, or softmax is asked for and it gives no single matrix.
    """
    preprocessing = source.spec.preprocessing
    affine = Affine.of(preprocessing)
    if source.example[0].ndim != 4 or source.example[0].shape[1] != 3:
        shape = " x ".join(map(str, source.example[0].shape))
        raise UsageError(f"preprocessing cannot be baked in: the model takes {shape}, and no image of three channels")
    if source.example[0].shape[0] != 1:
        batch = source.example[0].shape[0]
        raise UsageError(f"preprocessing cannot be baked in: the model takes {batch} images at once, an app gives one")
    rewriter = Rewriter(graph)
    image = next(node for node in rewriter.module.graph.nodes if node.op == "placeholder")
    _normalise(rewriter, image, affine)
    outputs = graph.outputs
    if softmax:
        outputs = (PROBABILITIES,)
        _add_softmax(rewriter)
    baked = replace(rewriter.finish(), outputs=outputs, example=(_pixels(source.example[0]), *source.example[1:]))
    now = replace(preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3, colour="RGB", input_range=PIXELS)
    state = f"{source.spec.source_sha256} baked {to_json(preprocessing)} softmax {softmax}"
    spec = replace(
        source.spec, preprocessing=now, pixels=True, source_sha256=hashlib.sha256(state.encode()).hexdigest()
    )
    module = BakedModule(source.module, affine, softmax).eval()
    return replace(source, module=module, spec=spec, example=baked.example, outputs=outputs), baked


def _pixels(example: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, example.shape, generator=generator).float()


def _normalise(rewriter: Rewriter, image: fx.Node, affine: Affine) -> None:
    scale, shift = affine.tensors(torch.float32)
    users = list(image.users)
    first = next(node for node in rewriter.module.graph.nodes if node.op not in ("placeholder", "get_attr"))
    with rewriter.before(first):
        value = rewriter.call(aten.flip.default, image, [1]) if affine.reverse else image
        value = rewriter.call(aten.mul.Tensor, value, rewriter.constant(SCALE, scale))
        value = rewriter.call(aten.add.Tensor, value, rewriter.constant(SHIFT, shift))
    for user in users:
        if not str(user.target).startswith("aten.sym_size"):
            user.replace_input_with(image, value)


def _add_softmax(rewriter: Rewriter) -> None:
    returned = next(node for node in rewriter.module.graph.nodes if node.op == "output")
    values: Any = returned.args[0]
    if len(values) != 1 or values[0].meta["val"].ndim != 2:
        raise UsageError("softmax is for classifiers: the model must give one matrix (N, classes) and nothing else")
    with rewriter.before(returned):
        returned.args = ((rewriter.call(aten.softmax.int, values[0], 1),),)


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
    reason = next((why for node in convolutions if (why := _why_not(rewriter, node)) is not None), None)
    if reason is not None:
        raise UsageError(f"preprocessing cannot be baked in: {reason}; export without --bake-preprocessing")
    a = rewriter.weight(scale.args[1]).double().flatten()  # type: ignore[union-attr]
    b = rewriter.weight(shift.args[1]).double().flatten()  # type: ignore[union-attr]
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
    grey = float(greys.mean()) if form == "padded" else None
    for node in convolutions:
        _fold(rewriter, node, pixels, a, b, reverse=flip is not None, grey=grey, whole=form != "shifted")
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


def _baked(image: fx.Node) -> tuple[fx.Node | None, fx.Node, fx.Node]:
    """The operators that ``bake`` wrote behind the image: flip if any, product, sum."""
    readers = [node for node in image.users if not str(node.target).startswith("aten.sym_size")]
    first = readers[0] if len(readers) == 1 else image
    flip = first if kind(first) == "flip" else None
    scale = next(iter(flip.users)) if flip is not None else first
    shift = next(iter(scale.users), scale)
    names = [str(node.args[1].target) if isinstance(node.args[1], fx.Node) else "" for node in (scale, shift)
             if len(node.args) > 1]  # fmt: skip
    if names != [SCALE, SHIFT]:
        raise ConversionError("the graph has no normalisation of its own to fold; bake it first")
    return flip, scale, shift


def _why_not(rewriter: Rewriter, node: fx.Node) -> str | None:
    """Why a user of the normalised image cannot take the normalisation in; None if it can."""
    where = rewriter.graph.layer_of(node.name) or node.name
    if node.op == "output":
        return "the model gives its own input back"
    if node.target is not aten.conv2d.default:
        what = kind(node) if kind(node) != "conv2d" else "a convolution with padding given by name"
        named = where.lstrip(":")
        named += "" if named == what else f" ({what})"
        return f"{named} takes the image; only convolutions can take the normalisation in"
    if rewriter.weight(node.args[1]) is None:
        return f"the kernel of {where} is computed while the model runs"
    return None


def _fold(
    rewriter: Rewriter, node: fx.Node, pixels: fx.Node, a: torch.Tensor, b: torch.Tensor, *, reverse: bool,
    grey: float | None, whole: bool,
) -> None:  # fmt: skip
    """Give a convolution the factor of the normalisation, and all of it where *whole*."""
    kernel = rewriter.weight(node.args[1])
    bias = rewriter.weight(argument(node, 2, "bias"))
    assert kernel is not None  # noqa: S101 - _why_not has looked
    stride, padding = argument(node, 3, "stride", [1, 1]), argument(node, 4, "padding", [0, 0])
    dilation, groups = argument(node, 5, "dilation", [1, 1]), argument(node, 6, "groups", 1)
    shape = kernel.shape  # (C_out, C_in / groups, kH, kW)
    by_group = kernel.double().reshape(groups, shape[0] // groups, *shape[1:])
    spread = by_group * a.reshape(groups, 1, -1, 1, 1)
    name = str(node.args[1].target).removesuffix("_folded").removesuffix(".weight")  # type: ignore[union-attr]
    new_bias = None if bias is None else bias.double()
    if whole:
        lift = (by_group * b.reshape(groups, 1, -1, 1, 1)).sum((2, 3, 4)).flatten()
        new_bias = lift if new_bias is None else new_bias + lift
    new_kernel = spread.reshape(shape)
    if reverse:
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
    return max(float(np.max(np.abs(new[name] - value))) / scales[name] for name, value in old.items())
