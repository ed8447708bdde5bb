"""The inputs that a model is tried and captured with: its sizes, its batch, and as many channels as it accepts."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn

from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.graph.capture import trial
from coordatt_deploy.graph.fixed_batch import FIXED_BATCH
from coordatt_deploy.loading.factories import LoadedModule
from coordatt_deploy.loading.model_request import SMALLEST, ModelRequest
from coordatt_deploy.loading.sizes import LARGEST_TRIED, BatchBounds, batch_within, check_size, size_within

COLOUR: Final = 3  # channels
USUAL_SIZE: Final = (224, 224)


def capture_size(request: ModelRequest, built: LoadedModule, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (H, W) to capture with: the user's, the model's own, or the usual one, within dynamic bounds if any.

    Args:
        request: Of the user.
        built: What they named.
        shape: That they gave for the first input; empty where they gave none.
    """
    of_shape = (shape[2], shape[3]) if len(shape) == 4 else None
    if of_shape and request.input_size not in (None, of_shape):
        raise UsageError(
            f"--input-shape gives images of {of_shape[0]}x{of_shape[1]}, --input-size"
            f" {request.input_size[0]}x{request.input_size[1]}; leave one of them out"
        )
    size = of_shape or request.input_size or built.input_size or USUAL_SIZE
    check_size(size, SMALLEST if built.registry else 1)
    if request.dynamic is None:
        return size
    low, high, step = request.dynamic
    asked = of_shape or request.input_size
    if asked is not None and any(not low <= side <= high or side % step for side in size):
        raise UsageError(
            f"--input-size {size[0]}x{size[1]} does not lie within --dynamic-size {low}:{high}:{step};"
            " leave it out, or widen the range"
        )
    if built.registry:
        check_size((low, high), SMALLEST)
    return size_within(request.dynamic, size)


def example_inputs(
    names: tuple[str, ...], size: tuple[int, int], request: ModelRequest, built: LoadedModule
) -> tuple[tuple[torch.Tensor, ...], object]:
    """Return an example of each input that the model takes, and what it gives for them.

    Images have as many channels as it accepts.

    Raises:
        UsageError: It rejects what it should take.
    """
    refusals: list[UsageError] = []
    taken = _image_channels(built.module)
    for channels in dict.fromkeys((COLOUR, *taken)):
        try:
            shapes = _shapes(names, size, request.inputs, built, channels)
            if request.batch is not None:
                return _tried_with_batch(shapes, request.batch, built)
            if request.batch_size is not None:
                return _tried_with_size(shapes, request.batch_size, built)
            example = _random(shapes)
            return example, trial(built.module, example)
        except UsageError as error:
            refusals.append(error)
    raise refusals[0 if COLOUR in taken else 1]


def _tried_with_batch(
    shapes: list[tuple[int, ...]], bounds: BatchBounds, built: LoadedModule
) -> tuple[tuple[torch.Tensor, ...], object]:
    """Like ``example_inputs``, with several images in every input that takes as many as the first."""
    batch = batch_within(bounds, [shape[0] for shape in shapes if shape and shape[:1] != shapes[0][:1]])
    example = _random(_with_batch(shapes, batch))
    try:
        return example, trial(built.module, example)
    except UsageError as error:
        others = [size for size in range(1, LARGEST_TRIED + 1) if _takes(built, _with_batch(shapes, size))]
        if not others:
            raise  # it takes no input of this kind, of whatever batch
        raise UsageError(
            f"--dynamic-batch {bounds[0]}:{bounds[1]}: the model takes a batch of {' or '.join(map(str, others))}, and"
            f" none of {batch}: {error}; {FIXED_BATCH}"
        ) from error


def _tried_with_size(
    shapes: list[tuple[int, ...]], batch: int, built: LoadedModule
) -> tuple[tuple[torch.Tensor, ...], object]:
    """Like ``example_inputs``, with *batch* images in every input that takes as many as the first."""
    example = _random(_with_batch(shapes, batch))
    try:
        return example, trial(built.module, example)
    except UsageError as error:
        if not _takes(built, shapes):
            raise  # of whatever batch
        raise UsageError(
            f"--batch-size {batch}: the model takes a batch of {shapes[0][0]}, and none of {batch}: {error}; let its"
            " code ask for the batch, as in x.flatten(1) or x.reshape(x.shape[0], -1), or leave --batch-size out"
        ) from error


def _with_batch(shapes: Sequence[tuple[int, ...]], batch: int) -> list[tuple[int, ...]]:
    """Put the batch into the shape of every input whose first axis is as long as that of the first."""
    return [(batch, *shape[1:]) if shape[:1] == shapes[0][:1] else shape for shape in shapes]


def _takes(built: LoadedModule, shapes: Sequence[tuple[int, ...]]) -> bool:
    try:
        trial(built.module, _random(shapes))
    except UsageError:
        return False
    return True


def _shapes(
    names: tuple[str, ...],
    size: tuple[int, int],
    shapes: Mapping[str, tuple[int, ...]] | None,
    built: LoadedModule,
    channels: int,
) -> list[tuple[int, ...]]:
    """The shape of each input: the user's, the saved program's, or that of an image."""
    given = dict(shapes or {})
    for name in given:
        if name not in names:
            raise UsageError(f"the model has no input {name!r}; {nearest(name, names)}")
    return [
        given.get(name, built.shapes[index] if built.shapes else (1, channels if index == 0 else 3, *size))
        for index, name in enumerate(names)
    ]


def _random(shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _image_channels(module: nn.Module) -> tuple[int, ...]:
    """What the convolutions take, in the order of their definition, which need not be the order in which they run.

    None need take colour images where a network does: a space-to-depth stem makes 12 channels of them.
    """
    taken = dict.fromkeys(layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return tuple(taken) or (COLOUR,)
