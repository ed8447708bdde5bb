"""The table of the ML Program operators: one NumPy function for each.

A function takes its operator's inputs under the names of the MIL operator set (``x`` and ``y`` come by position, so
that NumPy's own functions can stand in the table) and gives the result, or a tuple of them. fp16 tensors arrive widened
to float32 and results are rounded to the type that the program declares, so a function computes in float32 and knows
nothing of storage; integers and booleans arrive as they are. No function writes into its inputs. Editions of one
operator (iOS 15 to 18) share a function and differ in the arguments that are given.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from coordatt_deploy.runtimes.coreml.evaluator import (
    activations,
    elementwise,
    linear_algebra,
    normalisation,
    reductions,
    resize,
    shapes,
    weights,
    windows,
)

Kernel = Callable[..., object]
"""Each takes the parameters of its operator, and is called with the arguments that a file names."""

OPERATORS: Final[dict[str, Kernel]] = {
    # elementwise
    "abs": np.abs,
    "acos": np.arccos,
    "add": np.add,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "cast": elementwise.cast,
    "ceil": np.ceil,
    "clip": elementwise.clip,
    "cos": np.cos,
    "cosh": np.cosh,
    "equal": np.equal,
    "erf": elementwise.erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "identity": lambda x: x,
    "inverse": elementwise.inverse,
    "less": np.less,
    "less_equal": np.less_equal,
    "log": elementwise.log,
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
    "real_div": elementwise.real_div,
    "round": np.rint,
    "rsqrt": elementwise.rsqrt,
    "select": elementwise.select,
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
    "clamped_relu": activations.clamped_relu,
    "elu": activations.elu,
    "gelu": activations.gelu,
    "leaky_relu": activations.leaky_relu,
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "prelu": activations.prelu,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "relu6": lambda x: np.clip(x, np.float32(0), np.float32(6)),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "sigmoid": activations.sigmoid,
    "sigmoid_hard": activations.sigmoid_hard,
    "silu": lambda x: x * activations.sigmoid(x),
    "softmax": activations.softmax,
    "softplus": lambda x: np.logaddexp(np.float32(0), x),
    "softplus_parametric": activations.softplus_parametric,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "thresholded_relu": activations.thresholded_relu,
    # reductions
    "reduce_argmax": partial(reductions.reduce_arg, np.argmax),
    "reduce_argmin": partial(reductions.reduce_arg, np.argmin),
    "reduce_l1_norm": partial(reductions.reduce, reductions.l1_norm),
    "reduce_l2_norm": partial(reductions.reduce, reductions.l2_norm),
    "reduce_log_sum": partial(reductions.reduce, reductions.log_sum),
    "reduce_log_sum_exp": partial(reductions.reduce, reductions.log_sum_exp),
    "reduce_max": partial(reductions.reduce, np.max),
    "reduce_mean": partial(reductions.reduce, np.mean),
    "reduce_min": partial(reductions.reduce, np.min),
    "reduce_prod": partial(reductions.reduce, np.prod),
    "reduce_sum": partial(reductions.reduce, np.sum),
    "reduce_sum_square": partial(reductions.reduce, reductions.sum_square),
    # moving data about
    "concat": shapes.concat,
    "crop": resize.crop,
    "depth_to_space": shapes.depth_to_space,
    "expand_dims": lambda x, axes: np.expand_dims(x, shapes.chosen_axes(axes, x.ndim)),
    "fill": shapes.fill,
    "fill_like": shapes.fill_like,
    "flatten2d": shapes.flatten2d,
    "gather": shapes.gather,
    "gather_along_axis": shapes.gather_along_axis,
    "pad": shapes.pad,
    "pixel_shuffle": shapes.pixel_shuffle,
    "pixel_unshuffle": shapes.pixel_unshuffle,
    "range_1d": shapes.range_1d,
    "reshape": shapes.reshape,
    "reverse": shapes.reverse,
    "shape": lambda x: np.array(x.shape),
    "slice_by_index": shapes.slice_by_index,
    "slice_by_size": shapes.slice_by_size,
    "space_to_depth": shapes.space_to_depth,
    "split": shapes.split,
    "squeeze": shapes.squeeze,
    "stack": lambda values, axis: np.stack(values, axis=int(axis)),
    "tile": lambda x, reps: np.tile(x, [int(n) for n in reps]),
    "topk": shapes.topk,
    "transpose": lambda x, perm: np.transpose(x, [int(axis) for axis in perm]),
    # resizing
    "resize": resize.resize,
    "resize_bilinear": resize.resize_bilinear,
    "resize_nearest_neighbor": resize.resize_nearest_neighbor,
    "upsample_bilinear": resize.upsample_bilinear,
    "upsample_nearest_neighbor": resize.upsample_nearest_neighbor,
    # products, windows, normalisations
    "avg_pool": windows.avg_pool,
    "batch_norm": normalisation.batch_norm,
    "conv": windows.conv,
    "conv_transpose": windows.conv_transpose,
    "einsum": linear_algebra.einsum,
    "instance_norm": normalisation.instance_norm,
    "l2_norm": normalisation.l2_norm,
    "layer_norm": normalisation.layer_norm,
    "linear": linear_algebra.linear,
    "matmul": linear_algebra.matmul,
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
