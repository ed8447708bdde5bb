"""Torch operators that coremltools 9.0 converts into something else, or not at all, written anew.

    clamp:         coremltools gives its result a number for a name, so that nobody can tell where the value is.
    average pool:  Core ML divides by the whole window where ``ceil_mode`` lets it hang over an edge that only the run
                   knows; torch by what lies inside, padding included or not. Padding of more than one element
                   has been seen to go wrong.
    power:         Core ML squares the exponent where the base is the constant 2.
    PReLU:         Core ML takes one slope per channel for images alone.
    resize:        coremltools needs a factor that it can read off the graph; to another tensor's size there is none.
    split:         coremltools needs sizes that are constants.

The table of evidence (``coordatt_deploy/runtimes/coreml/evaluator/evidence.py``) says how
what is said of Core ML itself is known.
Everything else stays with coremltools' own functions, whose names and output are what the layer map is carried by.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Final, TypeAlias

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.exporters.coreml.resizing import Resizing
from coordatt_deploy.runtimes.coreml.coremltools_import import mil

# private parts of coremltools, after the quiet import
from coremltools.converters.mil.frontend.torch.converter import TranscriptionContext  # isort: skip
from coremltools.converters.mil.frontend.torch.internal_graph import InternalTorchIRNode  # isort: skip
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes  # isort: skip
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY  # isort: skip
from coremltools.converters.mil.mil import Builder as mb  # isort: skip  # noqa: N813 - as everybody calls it

Conversion: TypeAlias = Callable[[TranscriptionContext, InternalTorchIRNode], None]
Step: TypeAlias = tuple[mil.Var, tuple[mil.Var | np.int32, mil.Var | np.int32]]
"""A size to resize to, and the distance of the places that are read, as numerator and denominator."""

SEEN_RIGHT: Final = 1  # elements of counted padding that a pool of Core ML was seen to be right with: coremltools#1901


@contextmanager
def corrected(resizings: Mapping[str, Resizing]) -> Iterator[None]:
    """Let coremltools convert by the functions of this module for as long as the context lasts.

    Args:
        resizings: What is known of each resizing operator, by the name of its node.
    """
    table: dict[str, Conversion] = _TORCH_OPS_REGISTRY.name_to_func_mapping
    before = dict(table)
    table["clamp"] = partial(_clamp, before["clamp"])
    for name in ("avg_pool1d", "avg_pool2d"):
        table[name] = partial(_average_pool, before[name])
    table["prelu"] = partial(_prelu, before["prelu"])
    for name in ("pow", "pow.tensor_tensor"):
        table[name] = partial(_power, before[name])
    for name in ("split", "split_with_sizes"):
        table[name] = partial(_split, before[name])
    for name, resize in (("upsample_nearest2d", _nearest), ("upsample_bilinear2d", _bilinear)):
        for spelling in (name, f"{name}.vec"):
            table[spelling] = partial(resize, before[spelling], resizings)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def _values(context: TranscriptionContext, node: InternalTorchIRNode) -> list[object]:
    """Return what is known of the node's arguments; None for what only the run knows.

    ``_get_inputs`` makes a constant of every number, which renames those of the whole program: it is for nodes that are
    written anew alone.
    """
    given = [context[item] if isinstance(item, str) and item in context else item for item in node.inputs]
    return [item.val if isinstance(item, mil.Var) else item for item in given]


def _clamp(convert: Conversion, context: TranscriptionContext, node: InternalTorchIRNode) -> None:
    """Give the clip that a clamp becomes the name of the clamp."""
    convert(context, node)
    value = context[node.name]
    if value.op is not None and value.op.op_type == "clip":
        value.op.name = value.name = node.name


def _average_pool(convert: Conversion, context: TranscriptionContext, node: InternalTorchIRNode) -> None:
    """Write a pool that counts much padding, or that rounds a size up which only the run knows.

    Of fixed sizes, lowering has left none with ``ceil_mode`` or a divisor.
    """
    x, given = context[node.inputs[0]], _values(context, node)
    defaults: tuple[object, ...] = (None, None, None, 0, False, True, None)  # of the arguments, from the input on
    _, kernel_sizes, stride, padding, ceil_mode, count_padding, divisor = (*given, *defaults[len(given) :])
    axes, ceil = x.rank - 2, bool(ceil_mode)
    kernel = _per_axis(kernel_sizes, axes)
    steps = (None if stride is None else _per_axis(stride, axes)) or kernel
    pads = _per_axis(padding, axes)
    if not ceil and divisor is None and (not count_padding or max(pads) <= SEEN_RIGHT):
        convert(context, node)
        return
    # torch leaves out a window that begins behind the input and the padding before it; Core ML where there is padding
    dropped = [pad for size, step, pad in zip(kernel, steps, pads, strict=True) if ceil and step - 1 - size + pad >= 0]
    if dropped and (count_padding or not all(dropped)):
        raise ValueError(f"{node.name}: Core ML may keep a last window that torch leaves out; set ceil_mode=False")
    pool = partial(mb.avg_pool, kernel_sizes=kernel, strides=steps, pad_type="custom", ceil_mode=ceil)
    around = [n for pad in pads for n in (pad, pad)]
    if divisor is not None:  # padding and overhang are zeros: times the window's size, the mean is the sum
        mean = pool(x=x, pad=around, exclude_padding_from_average=False)
        result = mb.mul(x=mean, y=_as(x, np.prod(kernel) / np.asarray(divisor)), name=node.name)
    elif not count_padding or not any(pads):
        result = pool(x=x, pad=around, exclude_padding_from_average=True, name=node.name)
    else:  # padding that is part of the input counts, and what hangs over does not
        padded = mb.pad(x=x, pad=around, mode="constant", constant_val=_as(x, 0.0))
        result = pool(x=padded, pad=[0] * len(around), exclude_padding_from_average=ceil, name=node.name)
    context.add(result)


def _per_axis(value: object, axes: int) -> list[int]:
    numbers = [int(n) for n in np.atleast_1d(np.asarray(value))]
    return numbers * axes if len(numbers) == 1 else numbers


def _as(x: mil.Var, value: float | NumberArray) -> NumberArray:
    return np.asarray(value, mil.types.nptype_from_builtin(x.dtype))[()]


def _power(convert: Conversion, context: TranscriptionContext, node: InternalTorchIRNode) -> None:
    base = _values(context, node)[0]
    if base is None or not (np.asarray(base) == 2).all():
        convert(context, node)
        return
    _, exponent = promote_input_dtypes(_get_inputs(context, node, expected=2))
    if not mil.types.is_float(exponent.dtype):
        convert(context, node)
        return
    context.add(mb.exp2(x=exponent, name=node.name))


def _prelu(convert: Conversion, context: TranscriptionContext, node: InternalTorchIRNode) -> None:
    x, slope = context[node.inputs[0]], _values(context, node)[1]
    if x.rank in (1, 4) or slope is None or np.unique(np.asarray(slope)).size == 1:
        convert(context, node)
        return
    slopes = np.asarray(slope).reshape(-1, *[1] * (x.rank - 2))
    below = mb.mul(x=mb.minimum(x=x, y=_as(x, 0.0)), y=slopes)
    context.add(mb.add(x=mb.relu(x=x), y=below, name=node.name))


def _split(convert: Conversion, context: TranscriptionContext, node: InternalTorchIRNode) -> None:
    """Cut parts out whose sizes are known only when the program runs."""
    given = node.inputs[1]
    if not isinstance(given, (list, tuple)) or not any(isinstance(size, str) for size in given):
        convert(context, node)
        return
    x, sizes, *rest = _get_inputs(context, node)
    axis = (int(rest[0].val) if rest else 0) % x.rank
    ends = list(accumulate(sizes, lambda total, size: mb.add(x=total, y=size)))
    open_ends = [place != axis for place in range(x.rank)]
    zero = np.int32(0)
    parts = [
        mb.slice_by_index(
            x=x,
            begin=mb.concat(values=[begin if place == axis else zero for place in range(x.rank)], axis=0),
            end=mb.concat(values=[end if place == axis else zero for place in range(x.rank)], axis=0),
            begin_mask=open_ends,
            end_mask=open_ends,
            name=f"{node.name}_{number}",
        )
        for number, (begin, end) in enumerate(zip([zero, *ends[:-1]], ends, strict=True))
    ]
    context.add(parts, torch_name=node.name)


def _nearest(
    convert: Conversion, known: Mapping[str, Resizing], context: TranscriptionContext, node: InternalTorchIRNode
) -> None:
    plan = known.get(node.name)
    if plan is None:
        convert(context, node)
        return
    x = context[node.inputs[0]]
    if plan.factors is not None:
        height, width = plan.factors
        made = mb.upsample_nearest_neighbor(x=x, scale_factor_height=height, scale_factor_width=width, name=node.name)
        context.add(made)
        return
    rows, columns = (
        mb.floor_div(x=mb.mul(x=_counted(out), y=numerator), y=denominator)
        for out, (numerator, denominator) in _steps(x, context, node, plan)
    )
    context.add(mb.gather(x=mb.gather(x=x, indices=rows, axis=2), indices=columns, axis=3, name=node.name))


def _bilinear(
    convert: Conversion, known: Mapping[str, Resizing], context: TranscriptionContext, node: InternalTorchIRNode
) -> None:
    plan = known.get(node.name)
    if plan is None:
        convert(context, node)
        return
    x, align_corners = context[node.inputs[0]], bool(_values(context, node)[2])
    if plan.factors is not None:
        height, width = plan.factors
        made = mb.upsample_bilinear(
            x=x, scale_factor_height=height, scale_factor_width=width, align_corners=align_corners, name=node.name
        )
        context.add(made)
        return
    rows, columns = _steps(x, context, node, plan)
    tall = _between(x, 2, rows, align_corners, None)
    context.add(_between(tall, 3, columns, align_corners, node.name))


def _between(x: mil.Var, axis: int, step: Step, align_corners: bool, name: str | None) -> mil.Var:
    """Interpolate along one axis, with places as fractions of whole numbers: float16 could not tell them apart.

    aligned:    place = o * (size - 1) / (out - 1)
    unaligned:  place = max(0, (o + 1/2) * n / d - 1/2) = max(0, (2 * o + 1) * n - d) / (2 * d)
    """
    out, (numerator, denominator) = step
    last = mb.sub(x=_sizes(x)[axis - 2], y=1)
    if align_corners:
        above = mb.mul(x=_counted(out), y=last)
        below = mb.maximum(x=mb.sub(x=out, y=1), y=1)
    else:
        odd = mb.add(x=mb.mul(x=_counted(out), y=2), y=1)
        above = mb.maximum(x=mb.sub(x=mb.mul(x=odd, y=numerator), y=denominator), y=0)
        below = mb.mul(x=denominator, y=2)
    low = mb.floor_div(x=above, y=below)
    high = mb.minimum(x=mb.add(x=low, y=1), y=last)
    dtype = mil.types.builtin_to_string(x.dtype)
    rest = mb.cast(x=mb.sub(x=above, y=mb.mul(x=low, y=below)), dtype=dtype)
    share = mb.real_div(x=rest, y=mb.cast(x=below, dtype=dtype))
    share = mb.reshape(x=share, shape=[1, 1, -1, 1] if axis == 2 else [1, 1, 1, -1])
    first, second = (mb.gather(x=x, indices=places, axis=axis) for places in (low, high))
    change = mb.mul(x=mb.sub(x=second, y=first), y=share)
    return mb.add(x=first, y=change) if name is None else mb.add(x=first, y=change, name=name)


def _counted(count: mil.Var) -> mil.Var:
    return mb.range_1d(start=0, end=count, step=1)


def _sizes(x: mil.Var) -> tuple[mil.Var, mil.Var]:
    shape = mb.shape(x=x)
    return mb.gather(x=shape, indices=2, axis=0), mb.gather(x=shape, indices=3, axis=0)


def _steps(x: mil.Var, context: TranscriptionContext, node: InternalTorchIRNode, plan: Resizing) -> tuple[Step, Step]:
    """The height and width that the node asks for, and how far apart the places are that they are read from.

    Where the code gives a size, that is the size that there is over the one that is asked for; where it gives a factor,
    one over the factor.
    """
    given, have = _get_inputs(context, node)[1], _sizes(x)
    if isinstance(given, (list, tuple)):
        height, width = (mb.cast(x=size, dtype="int32") for size in given)
        return (height, (have[0], height)), (width, (have[1], width))
    if plan.fractions is None:
        what = f"Torch operation named {node.kind} ({node.name})"
        raise ValueError(f"{what} has a factor that is no simple fraction at every size; resize to a size instead")
    tall, wide = ((np.int32(item.denominator), np.int32(item.numerator)) for item in plan.fractions)
    height, width = (
        mb.floor_div(x=mb.mul(x=size, y=up), y=down) for size, (down, up) in zip(have, (tall, wide), strict=True)
    )
    return (height, tall), (width, wide)
