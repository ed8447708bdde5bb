"""Activations; channels are on axis 1. Constants are float32, so that results are, whatever NumPy promotes."""

import math

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.runtimes.coreml.evaluator.elementwise import erf
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError


def sigmoid(x: NumberArray) -> NumberArray:
    """Return 1 / (1 + exp(-x))."""
    result: NumberArray = 1 / (1 + np.exp(np.negative(x)))
    return result


def clamped_relu(x: NumberArray, *, alpha: float, beta: float) -> NumberArray:
    """Return min(x, beta), with alpha * x below 0."""
    result: NumberArray = np.minimum(np.where(x < 0, alpha * x, x), beta)
    return result


def elu(x: NumberArray, *, alpha: float) -> NumberArray:
    """Return x, with alpha * (exp(x) - 1) below 0."""
    return np.where(x > 0, x, alpha * np.expm1(x))


def leaky_relu(x: NumberArray, *, alpha: float) -> NumberArray:
    """Return x, with alpha * x below 0."""
    return np.where(x >= 0, x, alpha * x)


def prelu(x: NumberArray, *, alpha: NumberArray) -> NumberArray:
    """Return x, with alpha * x below 0; ``alpha`` is per channel."""
    return np.where(x > 0, x, alpha.reshape(-1, *[1] * (x.ndim - 2)) * x)


def softplus_parametric(x: NumberArray, *, alpha: NumberArray, beta: NumberArray) -> NumberArray:
    """Return alpha * log(1 + exp(beta * x)); ``alpha`` and ``beta`` are per channel."""
    shape = (-1, *[1] * (x.ndim - 2))
    result: NumberArray = alpha.reshape(shape) * np.logaddexp(np.float32(0), beta.reshape(shape) * x)
    return result


def sigmoid_hard(x: NumberArray, *, alpha: float, beta: float) -> NumberArray:
    """Return alpha * x + beta within [0, 1]."""
    return np.clip(alpha * x + beta, np.float32(0), np.float32(1))


def thresholded_relu(x: NumberArray, *, alpha: float) -> NumberArray:
    """Return x, with 0 below ``alpha``."""
    return np.where(x < alpha, np.float32(0), x)  # in this order NaN stays NaN


def softmax(x: NumberArray, *, axis: int) -> NumberArray:
    """Return exp(x), scaled to a sum of 1 along ``axis``."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    result: NumberArray = powers / powers.sum(axis=axis, keepdims=True)
    return result


def gelu(x: NumberArray, *, mode: str) -> NumberArray:
    """Return x times the standard normal distribution up to x, exactly or by one of two approximations."""
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        result: NumberArray = np.float32(0.5) * x * (1 + np.tanh(inner))
    elif mode == "SIGMOID_APPROXIMATION":
        result = x * sigmoid(np.float32(1.702) * x)
    elif mode == "EXACT":
        result = np.float32(0.5) * x * (1 + erf(x * np.float32(math.sqrt(0.5))))
    else:
        raise UnsupportedFormError(f"mode is {mode!r}")
    return result
