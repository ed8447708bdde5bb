"""The ML Program operators, one NumPy function each, and the table that names them.

A function takes its operator's inputs under the names of the MIL operator set (``x`` and ``y`` come by position, so
that NumPy's own functions can stand in the table) and gives the result, or a tuple of them. fp16 tensors arrive widened
to float32 and results are rounded to the type that the program declares, so a function computes in float32 and knows
nothing of storage; integers and booleans arrive as they are. No function writes into its inputs. Editions of one
operator (iOS 15 to 18) share a function and differ in the arguments that are given.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import IntegerArray, NumberArray
from coordatt_deploy.runtimes.coreml.evaluator import resize as resizing
from coordatt_deploy.runtimes.coreml.evaluator import weights as weights
from coordatt_deploy.runtimes.coreml.evaluator import windows as windows
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

Array = NumberArray
Kernel = Callable[..., object]


# Elementwise functions and activations.


def _sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(np.negative(x)))
    return result


def _clip(x: Array, *, alpha: float, beta: float) -> Array:
    return np.clip(x, alpha, beta)


def _clamped_relu(x: Array, *, alpha: float, beta: float) -> Array:
    result: Array = np.minimum(np.where(x < 0, alpha * x, x), beta)
    return result


def _elu(x: Array, *, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(x))


def _leaky_relu(x: Array, *, alpha: float) -> Array:
    return np.where(x >= 0, x, alpha * x)


def _prelu(x: Array, *, alpha: Array) -> Array:
    return np.where(x > 0, x, alpha.reshape(-1, *[1] * (x.ndim - 2)) * x)


def _softplus_parametric(x: Array, *, alpha: Array, beta: Array) -> Array:
    shape = (-1, *[1] * (x.ndim - 2))
    result: Array = alpha.reshape(shape) * np.logaddexp(np.float32(0), beta.reshape(shape) * x)
    return result


def _sigmoid_hard(x: Array, *, alpha: float, beta: float) -> Array:
    return np.clip(alpha * x + beta, np.float32(0), np.float32(1))


def _thresholded_relu(x: Array, *, alpha: float) -> Array:
    return np.where(x < alpha, np.float32(0), x)  # in this order NaN stays NaN


def _softmax(x: Array, *, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    result: Array = powers / powers.sum(axis=axis, keepdims=True)
    return result


def _gelu(x: Array, *, mode: str) -> Array:
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        result: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
    elif mode == "SIGMOID_APPROXIMATION":
        result = x * _sigmoid(np.float32(1.702) * x)
    elif mode == "EXACT":
        result = np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))
    else:
        raise UnsupportedFormError(f"mode is {mode!r}")
    return result


ERF_STEP: Final = 1 / 128
ERF_END: Final = 6.0  # 1 - erf(6) = 2e-17


@cache
def _erf_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and slopes of erf at multiples of ERF_STEP; NumPy has no erf, and math.erf takes one number at a time."""
    places = np.arange(round(ERF_END / ERF_STEP) + 2) * ERF_STEP
    return np.array([math.erf(place) for place in places]), 2 / math.sqrt(math.pi) * np.exp(-(places**2))


def _erf(x: Array) -> Array:
    """By cubic Hermite interpolation: off by step^4 / 384 * max|erf''''| < 1e-10 at most, below float32's rounding."""
    values, slopes = _erf_table()
    size = np.minimum(np.abs(x.astype(np.float64)), ERF_END)
    left = np.nan_to_num(size / ERF_STEP).astype(np.intp)
    t = size / ERF_STEP - left
    back = 1 - t
    curve = values[left] * (1 + 2 * t) * back**2 + values[left + 1] * (3 - 2 * t) * t**2
    curve += ERF_STEP * t * back * (slopes[left] * back - slopes[left + 1] * t)
    result: Array = np.copysign(curve, x).astype(x.dtype)
    return result


def _cast(x: Array, *, dtype: str) -> Array:
    types = {"fp16": np.float16, "fp32": np.float32}
    return np.asarray(x).astype(types.get(dtype, dtype))


def _select(cond: Array, *, a: Array, b: Array) -> Array:
    return np.where(cond, a, b)


def _inverse(x: Array, *, epsilon: float) -> Array:
    result: Array = np.reciprocal(x + epsilon)
    return result


def _log(x: Array, *, epsilon: float) -> Array:
    result: Array = np.log(x + epsilon)
    return result


def _rsqrt(x: Array, *, epsilon: float) -> Array:
    result: Array = np.reciprocal(np.sqrt(x + epsilon))
    return result


def _real_div(x: Array, y: Array) -> Array:
    quotient: Array = np.true_divide(x, y)
    # integers stay integers, rounded towards zero
    return quotient if np.issubdtype(np.result_type(x), np.floating) else np.trunc(quotient)


# Reductions.


def _axes(axes: Array | None, rank: int) -> tuple[int, ...]:
    return tuple(range(rank)) if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


def _reduce(function: Kernel, x: Array, *, axes: Array | None = None, keep_dims: bool) -> Array:
    return np.asarray(function(x, axis=_axes(axes, x.ndim), keepdims=bool(keep_dims)))


def _reduce_arg(function: Kernel, x: Array, *, axis: int, keep_dims: bool, output_dtype: str = "int32") -> Array:
    return np.asarray(function(x, axis=int(axis), keepdims=bool(keep_dims))).astype(output_dtype)


def _log_sum_exp(x: Array, *, axis: tuple[int, ...], keepdims: bool) -> Array:
    top = x.max(axis=axis, keepdims=True)
    result: Array = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return result if keepdims else result.squeeze(axis)


# Moving data about.


def _concat(values: Sequence[Array], *, axis: int, interleave: bool) -> Array:
    if not interleave:
        return np.concatenate(values, axis=int(axis))
    place = int(axis) % values[0].ndim
    stacked = np.stack(values, axis=place + 1)
    return stacked.reshape(*values[0].shape[:place], -1, *values[0].shape[place + 1 :])


def _split(
    x: Array, *, num_splits: int | None = None, split_sizes: Array | None = None, axis: int
) -> tuple[Array, ...]:
    if split_sizes is None:
        return tuple(np.split(x, int(num_splits or 1), axis=int(axis)))
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], axis=int(axis)))


def _slice_by_index(
    x: Array,
    *,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    def at(values: Array | None, axis: int, default: int) -> int:
        return default if values is None else int(values[axis])

    places: list[slice[int | None, int | None, int] | int] = []
    for axis in range(x.ndim):
        if at(squeeze_mask, axis, False):
            places.append(int(begin[axis]))
            continue
        first = None if at(begin_mask, axis, False) else int(begin[axis])
        last = None if at(end_mask, axis, False) else int(end[axis])
        places.append(slice(first, last, int(at(stride, axis, 1))))
    return x[tuple(places)]


def _slice_by_size(x: Array, *, begin: Array, size: Array) -> Array:
    places = []
    for first, count, length in zip(begin, size, x.shape, strict=True):
        start = int(first) % length if first < 0 else int(first)
        places.append(slice(start, length if count == -1 else start + int(count)))
    return x[tuple(places)]


def _reshape(x: Array, *, shape: Array) -> Array:
    wanted = [int(n) for n in shape]
    if len(wanted) == x.ndim:  # 0 keeps the axis
        wanted = [n or have for n, have in zip(wanted, x.shape, strict=True)]
    return x.reshape(wanted)


def _squeeze(x: Array, *, axes: Array | None = None) -> Array:
    candidates = {axis % x.ndim for axis in _axes(axes, x.ndim)}
    return x.reshape([n for axis, n in enumerate(x.shape) if n != 1 or axis not in candidates])


def _pad(x: Array, *, pad: Array, mode: str, constant_val: float) -> Array:
    counts = [(0, 0)] * (x.ndim - len(pad) // 2) + [(int(a), int(b)) for a, b in pad.reshape(-1, 2)]
    if mode == "constant":
        return np.pad(x, counts, constant_values=np.asarray(constant_val).astype(x.dtype))
    return np.pad(x, counts, mode="reflect" if mode == "reflect" else "edge")


def _gather(
    x: Array,
    *,
    indices: IntegerArray,
    axis: int,
    batch_dims: int = 0,
    validate_indices: bool = False,  # noqa: ARG001 - NumPy always validates
) -> Array:
    if batch_dims:
        raise UnsupportedFormError(f"batch_dims is {batch_dims}; only 0 is supported")
    result: Array = np.take(x, indices, axis=int(axis))
    return result


def _gather_along_axis(x: Array, *, indices: IntegerArray, axis: int, validate_indices: bool = False) -> Array:  # noqa: ARG001
    return np.take_along_axis(x, indices, axis=int(axis))


def _fill(shape: Array, *, value: float) -> Array:
    return np.full([int(n) for n in shape], value)


def _range_1d(end: float, *, start: float, step: float) -> Array:
    return np.arange(start, end, step)


def _reverse(x: Array, *, axes: Array | None = None) -> Array:
    return np.flip(x, _axes(axes, x.ndim))


def _flatten2d(x: Array, *, axis: int) -> Array:
    return x.reshape(math.prod(x.shape[: int(axis)]), -1)


def _depth_to_space(x: Array, *, block_size: int) -> Array:
    (n, c, h, w), b = x.shape, int(block_size)
    return x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, -1, h * b, w * b)


def _space_to_depth(x: Array, *, block_size: int) -> Array:
    (n, c, h, w), b = x.shape, int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, -1, h // b, w // b)


def _pixel_shuffle(x: Array, *, upscale_factor: int) -> Array:
    (n, c, h, w), b = x.shape, int(upscale_factor)
    return x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * b, w * b)


def _pixel_unshuffle(x: Array, *, downscale_factor: int) -> Array:
    (n, c, h, w), b = x.shape, int(downscale_factor)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 1, 3, 5, 2, 4).reshape(n, -1, h // b, w // b)


# Products and normalisations.


def _linear(x: Array, *, weight: Array, bias: Array | None = None) -> Array:
    y: Array = x @ weight.T
    return y if bias is None else y + bias


def _matmul(x: Array, y: Array, *, transpose_x: bool, transpose_y: bool) -> Array:
    left = x.swapaxes(-1, -2) if transpose_x and x.ndim > 1 else x
    right = y.swapaxes(-1, -2) if transpose_y and y.ndim > 1 else y
    result: Array = left @ right
    return result


def _einsum(values: Sequence[Array], *, equation: str) -> Array:
    result: Array = np.einsum(equation, *values, optimize=True)
    return result


def _per_channel(parameter: Array | None, rank: int, default: float) -> Array | np.float32:
    return np.float32(default) if parameter is None else parameter.reshape(-1, *[1] * (rank - 2))


def _batch_norm(
    x: Array,
    *,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float,
) -> Array:
    scale = _per_channel(gamma, x.ndim, 1.0) / np.sqrt(_per_channel(variance, x.ndim, 1.0) + epsilon)
    result: Array = (x - _per_channel(mean, x.ndim, 0.0)) * scale + _per_channel(beta, x.ndim, 0.0)
    return result


def _normalise(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - x.mean(axis=axes, keepdims=True)
    result: Array = centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    return result


def _instance_norm(x: Array, *, gamma: Array | None = None, beta: Array | None = None, epsilon: float) -> Array:
    normal = _normalise(x, tuple(range(2, x.ndim)), epsilon)
    result: Array = normal * _per_channel(gamma, x.ndim, 1.0) + _per_channel(beta, x.ndim, 0.0)
    return result


def _layer_norm(
    x: Array, *, axes: Array | None = None, gamma: Array | None = None, beta: Array | None = None, epsilon: float
) -> Array:
    chosen = tuple(sorted(axis % x.ndim for axis in _axes(axes, x.ndim)))
    shape = [n if axis in chosen else 1 for axis, n in enumerate(x.shape)]
    y = _normalise(x, chosen, epsilon)
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def _l2_norm(x: Array, *, epsilon: float) -> Array:
    squares = np.square(x).sum(axis=(-3, -2, -1), keepdims=True)
    result: Array = x / np.sqrt(squares + epsilon)
    return result


OPERATORS: Final[dict[str, Kernel]] = {
    # elementwise
    "abs": np.abs,
    "acos": np.arccos,
    "add": np.add,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "cast": _cast,
    "ceil": np.ceil,
    "clip": _clip,
    "cos": np.cos,
    "cosh": np.cosh,
    "equal": np.equal,
    "erf": _erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "identity": lambda x: x,
    "inverse": _inverse,
    "less": np.less,
    "less_equal": np.less_equal,
    "log": _log,
    "logical_and": np.logical_and,
    "logical_not": np.logical_not,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "real_div": _real_div,
    "round": np.rint,
    "rsqrt": _rsqrt,
    "select": _select,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "threshold": lambda x, alpha: np.maximum(x, alpha),
    # activations
    "clamped_relu": _clamped_relu,
    "elu": _elu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "prelu": _prelu,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "relu6": lambda x: np.clip(x, np.float32(0), np.float32(6)),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "sigmoid": _sigmoid,
    "sigmoid_hard": _sigmoid_hard,
    "silu": lambda x: x * _sigmoid(x),
    "softmax": _softmax,
    "softplus": lambda x: np.logaddexp(np.float32(0), x),
    "softplus_parametric": _softplus_parametric,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "thresholded_relu": _thresholded_relu,
    # reductions
    "reduce_argmax": partial(_reduce_arg, np.argmax),
    "reduce_argmin": partial(_reduce_arg, np.argmin),
    "reduce_l1_norm": partial(_reduce, lambda x, **where: np.abs(x).sum(**where)),
    "reduce_l2_norm": partial(_reduce, lambda x, **where: np.sqrt(np.square(x).sum(**where))),
    "reduce_log_sum": partial(_reduce, lambda x, **where: np.log(x.sum(**where))),
    "reduce_log_sum_exp": partial(_reduce, _log_sum_exp),
    "reduce_max": partial(_reduce, np.max),
    "reduce_mean": partial(_reduce, np.mean),
    "reduce_min": partial(_reduce, np.min),
    "reduce_prod": partial(_reduce, np.prod),
    "reduce_sum": partial(_reduce, np.sum),
    "reduce_sum_square": partial(_reduce, lambda x, **where: np.square(x).sum(**where)),
    # moving data about
    "concat": _concat,
    "crop": resizing.crop,
    "depth_to_space": _depth_to_space,
    "expand_dims": lambda x, axes: np.expand_dims(x, _axes(axes, x.ndim)),
    "fill": _fill,
    "flatten2d": _flatten2d,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "range_1d": _range_1d,
    "reshape": _reshape,
    "reverse": _reverse,
    "shape": lambda x: np.array(x.shape),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda values, axis: np.stack(values, axis=int(axis)),
    "tile": lambda x, reps: np.tile(x, [int(n) for n in reps]),
    "transpose": lambda x, perm: np.transpose(x, [int(axis) for axis in perm]),
    # resizing
    "resize": resizing.resize,
    "resize_bilinear": resizing.resize_bilinear,
    "resize_nearest_neighbor": resizing.resize_nearest_neighbor,
    "upsample_bilinear": resizing.upsample_bilinear,
    "upsample_nearest_neighbor": resizing.upsample_nearest_neighbor,
    # products, windows, normalisations
    "avg_pool": windows.avg_pool,
    "batch_norm": _batch_norm,
    "conv": windows.conv,
    "conv_transpose": windows.conv_transpose,
    "einsum": _einsum,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": windows.max_pool,
    # compressed weights and quantized activations
    "constexpr_affine_dequantize": weights.constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": weights.constexpr_blockwise_shift_scale,
    "constexpr_cast": weights.constexpr_cast,
    "constexpr_lut_to_dense": weights.constexpr_lut_to_dense,
    "constexpr_lut_to_sparse": weights.constexpr_lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": weights.constexpr_sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": weights.constexpr_sparse_to_dense,
    "dequantize": weights.dequantize,
    "quantize": weights.quantize,
}

# These only move data: they take fp16 as it is stored.
MOVES: Final = frozenset(
    {
        "concat", "crop", "depth_to_space", "expand_dims", "flatten2d", "gather", "gather_along_axis", "identity",
        "pad", "pixel_shuffle", "pixel_unshuffle", "reshape", "resize_nearest_neighbor", "reverse", "select", "shape",
        "slice_by_index", "slice_by_size", "space_to_depth", "split", "squeeze", "stack", "tile", "transpose",
        "upsample_nearest_neighbor",
    }
)  # fmt: skip
