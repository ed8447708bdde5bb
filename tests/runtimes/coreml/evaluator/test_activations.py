"""Activations against torch, inside a package that was saved and read back."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mil_programs import BOTH, FEW, IOS16, IOS17, check, check_sum, double, evaluate, mb, noise

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS

# Activations with attributes.
ACTIVATIONS = {
    "clamped_relu": ({"alpha": 0.2, "beta": 1.5}, lambda x: torch.clamp(F.leaky_relu(x, 0.2), max=1.5)),
    "clip": ({"alpha": -0.7, "beta": 1.1}, lambda x: torch.clamp(x, -0.7, 1.1)),
    "elu": ({"alpha": 0.8}, lambda x: F.elu(x, 0.8)),
    "leaky_relu": ({"alpha": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    "linear_activation": ({"alpha": 1.7, "beta": -0.3}, lambda x: 1.7 * x - 0.3),
    "prelu": ({"alpha": np.array([0.1, 0.6])}, lambda x: F.prelu(x, torch.tensor([0.1, 0.6], dtype=x.dtype))),
    "scaled_tanh": ({"alpha": 1.7, "beta": 0.6}, lambda x: 1.7 * torch.tanh(0.6 * x)),
    "sigmoid_hard": ({"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid),
    "threshold": ({"alpha": 0.4}, lambda x: torch.clamp(x, min=0.4)),
    "thresholded_relu": ({"alpha": -0.5}, lambda x: F.threshold(x, -0.5, 0.0)),
}  # fmt: skip


def typed(attributes, dtype):
    return {key: np.asarray(value).astype(dtype)[()] for key, value in attributes.items()}


@pytest.mark.parametrize("opset", [IOS16, IOS17])
@pytest.mark.parametrize("operator", ACTIVATIONS)
def test_activations(operator, opset):
    """
    Each activation is torch's, also where iOS 17 lets its constants have another type than its input.
    """
    attributes, function = ACTIVATIONS[operator]
    dtype = np.float16 if opset is IOS17 and operator not in ("clip", "threshold") else np.float32
    constants = typed(attributes, dtype)
    x = noise(2, 2, 5, 3)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, **constants), x, opset=opset, operator=operator)

    factor = 1.0 if dtype is np.float32 else 1e3  # fp16 constants are off by 2^-11
    check(function(double(x)), actual, factor)


@BOTH
@pytest.mark.parametrize(
    ("mode", "function"),
    [
        ("EXACT", F.gelu),
        ("TANH_APPROXIMATION", partial(F.gelu, approximate="tanh")),
        ("SIGMOID_APPROXIMATION", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_gelu(mode, function, dtype):
    """
    All three forms of GELU are torch's.
    """
    x = noise(3, 500, low=-6, high=6, dtype=dtype)

    check_sum(function(double(x)), evaluate(lambda a: mb.gelu(x=a, mode=mode), x, operator="gelu"))


@FEW
@given(alpha=st.floats(-2, 2, width=32), beta=st.floats(-2, 2, width=32))
def test_softplus_parametric(alpha, beta):
    """
    It is alpha * log(1 + exp(beta * x)), per channel.
    """
    x, a, b = noise(2, 2, 3, 4), np.array([alpha, 1.0], np.float32), np.array([beta, 0.5], np.float32)

    actual = evaluate(lambda v: mb.softplus_parametric(x=v, alpha=a, beta=b), x)

    shape = (1, 2, 1, 1)
    check(double(a).reshape(shape) * F.softplus(double(b).reshape(shape) * double(x), threshold=1e9), actual, 4)


@BOTH
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis, dtype):
    """
    Softmax is torch's along each axis, for inputs whose exponentials overflow as well.
    """
    x = noise(3, 4, 5, low=-200, high=200, dtype=dtype)

    actual = evaluate(lambda a: mb.softmax(x=a, axis=axis), x, operator="softmax")

    assert np.abs(torch.softmax(double(x), axis).numpy() - actual).max() < (1e-6 if dtype is np.float32 else 5e-4)


def test_nan_passes_through_every_activation():
    """
    No activation and no comparison with a constant turns NaN into a number.
    """
    x = np.full((1, 2, 1, 1), np.nan, dtype=np.float32)
    for operator, (attributes, _) in ACTIVATIONS.items():
        assert np.isnan(evaluate(lambda a, f=operator, k=attributes: getattr(mb, f)(x=a, **k), x)).all(), operator


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "threshold as maximum": (
        "thresholded_relu", lambda _: lambda x, alpha: np.maximum(x, alpha),
        lambda: test_activations("thresholded_relu", IOS16)),
    "softmax that overflows": (
        "softmax", lambda _: lambda x, axis: np.exp(x) / np.exp(x).sum(axis, keepdims=True),
        lambda: test_softmax(1, np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault, monkeypatch):
    """
    The tests above fail when the operator is wrong.
    """
    operator, spoil, noticed_by = FAULTS[fault]
    monkeypatch.setitem(OPERATORS, operator, spoil(OPERATORS[operator]))

    # a wrong shape is noticed by the evaluator itself
    with pytest.raises((AssertionError, ExceptionGroup, InferenceError, RuntimeError, ValueError)):
        noticed_by()


TESTED = {*ACTIVATIONS, "gelu", "softmax", "softplus_parametric"}
