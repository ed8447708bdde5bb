"""Operators that make one number of all elements along some axes."""

from typing import Protocol

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.runtimes.coreml.evaluator.shapes import chosen_axes


class Reduction(Protocol):
    """A function that reduces several axes at once, as NumPy's do."""

    def __call__(self, x: NumberArray, /, *, axis: tuple[int, ...], keepdims: bool) -> object:
        """Return what is left of *x*."""


class PlaceOfExtreme(Protocol):
    """A function that finds a place along one axis, as NumPy's do."""

    def __call__(self, x: NumberArray, /, *, axis: int, keepdims: bool) -> object:
        """Return the places in *x*."""


def reduce(function: Reduction, x: NumberArray, *, axes: NumberArray | None = None, keep_dims: bool) -> NumberArray:
    """Apply *function* along ``axes``; without them, along all."""
    return np.asarray(function(x, axis=chosen_axes(axes, x.ndim), keepdims=bool(keep_dims)))


def reduce_arg(
    function: PlaceOfExtreme, x: NumberArray, *, axis: int, keep_dims: bool, output_dtype: str = "int32"
) -> NumberArray:
    """Apply *function*, which gives places, along one axis."""
    return np.asarray(function(x, axis=int(axis), keepdims=bool(keep_dims))).astype(output_dtype)


def l1_norm(x: NumberArray, *, axis: tuple[int, ...], keepdims: bool) -> NumberArray:
    """Return sum(abs(x))."""
    result: NumberArray = np.abs(x).sum(axis=axis, keepdims=keepdims)
    return result


def l2_norm(x: NumberArray, *, axis: tuple[int, ...], keepdims: bool) -> NumberArray:
    """Return sqrt(sum(x ** 2))."""
    result: NumberArray = np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims))
    return result


def log_sum(x: NumberArray, *, axis: tuple[int, ...], keepdims: bool) -> NumberArray:
    """Return log(sum(x))."""
    result: NumberArray = np.log(x.sum(axis=axis, keepdims=keepdims))
    return result


def sum_square(x: NumberArray, *, axis: tuple[int, ...], keepdims: bool) -> NumberArray:
    """Return sum(x ** 2)."""
    result: NumberArray = np.square(x).sum(axis=axis, keepdims=keepdims)
    return result


def log_sum_exp(x: NumberArray, *, axis: tuple[int, ...], keepdims: bool) -> NumberArray:
    """Return log(sum(exp(x))), computed without overflow."""
    top = x.max(axis=axis, keepdims=True)
    result: NumberArray = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return result if keepdims else result.squeeze(axis)
