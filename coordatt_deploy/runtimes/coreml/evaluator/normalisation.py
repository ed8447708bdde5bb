"""Operators that bring mean and variance to 0 and 1, then scale and shift; channels are on axis 1."""

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.runtimes.coreml.evaluator.shapes import chosen_axes


def _per_channel(parameter: NumberArray | None, rank: int, default: float) -> NumberArray | np.float32:
    return np.float32(default) if parameter is None else parameter.reshape(-1, *[1] * (rank - 2))


def batch_norm(
    x: NumberArray,
    *,
    mean: NumberArray,
    variance: NumberArray,
    gamma: NumberArray | None = None,
    beta: NumberArray | None = None,
    epsilon: float,
) -> NumberArray:
    """Return (x - mean) / sqrt(variance + epsilon) * gamma + beta, per channel."""
    scale = _per_channel(gamma, x.ndim, 1.0) / np.sqrt(_per_channel(variance, x.ndim, 1.0) + epsilon)
    result: NumberArray = (x - _per_channel(mean, x.ndim, 0.0)) * scale + _per_channel(beta, x.ndim, 0.0)
    return result


def _normalise(x: NumberArray, axes: tuple[int, ...], epsilon: float) -> NumberArray:
    centred = x - x.mean(axis=axes, keepdims=True)
    result: NumberArray = centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    return result


def instance_norm(
    x: NumberArray, *, gamma: NumberArray | None = None, beta: NumberArray | None = None, epsilon: float
) -> NumberArray:
    """Normalise each channel of each case over its spatial axes; then scale and shift it."""
    normal = _normalise(x, tuple(range(2, x.ndim)), epsilon)
    result: NumberArray = normal * _per_channel(gamma, x.ndim, 1.0) + _per_channel(beta, x.ndim, 0.0)
    return result


def layer_norm(
    x: NumberArray,
    *,
    axes: NumberArray | None = None,
    gamma: NumberArray | None = None,
    beta: NumberArray | None = None,
    epsilon: float,
) -> NumberArray:
    """Normalise over ``axes``; then scale and shift each of their elements."""
    chosen = tuple(sorted(axis % x.ndim for axis in chosen_axes(axes, x.ndim)))
    shape = [n if axis in chosen else 1 for axis, n in enumerate(x.shape)]
    y = _normalise(x, chosen, epsilon)
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def l2_norm(x: NumberArray, *, epsilon: float) -> NumberArray:
    """Divide x by the root of the sum of squares over its last three axes."""
    squares = np.square(x).sum(axis=(-3, -2, -1), keepdims=True)
    result: NumberArray = x / np.sqrt(squares + epsilon)
    return result
