"""Products of matrices."""

from collections.abc import Sequence

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError


def linear(x: NumberArray, *, weight: NumberArray, bias: NumberArray | None = None) -> NumberArray:
    """Return x @ weight.T + bias."""
    y: NumberArray = x @ weight.T
    return y if bias is None else y + bias


def matmul(x: NumberArray, y: NumberArray, *, transpose_x: bool, transpose_y: bool) -> NumberArray:
    """Return x @ y, each with its last two axes swapped where asked.

    Raises:
        UnsupportedFormError: One of them is a vector, which Core ML is known to get wrong: apple/coremltools#2263.
    """
    if min(x.ndim, y.ndim) < 2:
        raise UnsupportedFormError("Core ML is known to compute a product with a vector wrong")
    left = x.swapaxes(-1, -2) if transpose_x else x
    right = y.swapaxes(-1, -2) if transpose_y else y
    result: NumberArray = left @ right
    return result


def einsum(values: Sequence[NumberArray], *, equation: str) -> NumberArray:
    """Return the sum of products that ``equation`` writes out."""
    result: NumberArray = np.einsum(equation, *values, optimize=True)
    return result
