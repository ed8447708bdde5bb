"""Let the network take the pixels as they come from a camera: normalisation inside, folded into the first convolution.

    normalised:   x = a * p + b,   a = (high - low) / (255 * std),   b = (low - mean) / std,   p in 0...255
    convolution:  y = W * x + c   =   (W * a) * (p + b / a) + c
    without padding:              =   (W * a) * p + (c + sum(W * b))

A padded convolution puts zeros around x. Around p that is -b / a, the grey that the mean stands for, and not zero:
adding ``sum(W * b)`` to the bias alone would be wrong all along the border. Where every channel has the same grey, p is
padded with it before the convolution; where they differ, the shift b / a stays as one sum on the image and only the
factor is folded. Both are exact. Anything between the image and its convolutions is refused with the reason.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import fx, nn

from coordatt_deploy.artifact_specs import Preprocessing, colour_of
from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.graph import Graph, aten, tensor_outputs
from coordatt_deploy.graph.passes.input_normalisation import SCALE, SHIFT
from coordatt_deploy.graph.rewriter import Rewriter
from coordatt_deploy.graph.source_weights import baked_sha256
from coordatt_deploy.loading.loaded_model import LoadedModel

PIXELS: Final = (0.0, 255.0)
PROBABILITIES: Final = "probabilities"


@dataclass(frozen=True, slots=True)
class Affine:
    """x = scale * p + shift per channel of the tensor, and whether the channels are the other way round."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    reverse: bool

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> "Affine":
        """What *preprocessing* does to a pixel value of 0...255 after resizing, in RGB or grey."""
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

    def forward(self, pixels: torch.Tensor, *others: torch.Tensor) -> object:
        """Take (1, C, H, W) of 0...255, in RGB or grey."""
        scale, shift = self.affine.tensors(pixels.dtype)
        image = pixels.flip(1) if self.affine.reverse else pixels
        returned = self.module(image * scale + shift, *others)
        return tensor_outputs(returned)[0].softmax(1) if self.softmax else returned


def bake(source: LoadedModel, graph: Graph, *, softmax: bool = False) -> tuple[LoadedModel, Graph]:
    """Return the source and its graph with pixels as input: normalisation (and softmax) as operators of their own.

    This is the reference of a baked bundle; ``fold_normalisation`` makes it fast.

    Args:
        source: Its first input takes images, of three channels or of one.
        graph: Captured from *source*.
        softmax: Also turn a single matrix of logits into probabilities.

    Raises:
        UsageError: The model takes no images, the border around them depends on the normalisation, or softmax is asked
            for and the model gives no single matrix.
    """
    preprocessing = source.spec.preprocessing
    affine = Affine.of(preprocessing)
    channels = len(preprocessing.mean)
    if source.example[0].ndim != 4 or source.example[0].shape[1] != channels or not preprocessing.takes_images:
        shape = " x ".join(map(str, source.example[0].shape))
        raise UsageError(
            f"preprocessing cannot be baked in: the model takes {shape}, and no image of three channels or one"
        )
    if preprocessing.crop == "border":
        raise UsageError(
            "preprocessing cannot be baked in: images are laid on the colour of the mean (crop border), and a baked"
            " file has no mean; leave --bake-preprocessing out, or take another crop in --preprocessing FILE"
        )
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
    now = replace(preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels, colour=colour_of(channels),
                  input_range=PIXELS)  # fmt: skip
    sha256 = baked_sha256(source.spec.source_sha256, preprocessing, softmax=softmax)
    spec = replace(source.spec, preprocessing=now, pixels=True, source_sha256=sha256)
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
    values = returned.args[0]
    logits = values[0] if isinstance(values, tuple | list) and len(values) == 1 else None
    if not isinstance(logits, fx.Node) or logits.meta["val"].ndim != 2:
        raise UsageError("softmax is for classifiers: the model must give one matrix (N, classes) and nothing else")
    with rewriter.before(returned):
        returned.args = ((rewriter.call(aten.softmax.int, logits, 1),),)
