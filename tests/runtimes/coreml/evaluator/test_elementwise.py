"""Operators on each element against torch, inside a package that was saved and read back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mil_programs import BOTH, check, double, evaluate, mb, noise, types

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS

# Operators on each element, with the interval that the inputs are drawn from.
ELEMENTWISE = {
    "abs": (torch.abs, -3, 3),
    "acos": (torch.acos, -1, 1),
    "asin": (torch.asin, -1, 1),
    "atan": (torch.atan, -3, 3),
    "atanh": (torch.atanh, -0.9, 0.9),
    "ceil": (torch.ceil, -3, 3),
    "cos": (torch.cos, -3, 3),
    "cosh": (torch.cosh, -3, 3),
    "erf": (torch.erf, -7, 7),
    "exp": (torch.exp, -3, 3),
    "exp2": (torch.exp2, -3, 3),
    "floor": (torch.floor, -3, 3),
    "identity": (lambda x: x, -3, 3),
    "inverse": (lambda x: 1 / (x + 0.5), 0.1, 3),
    "log": (lambda x: torch.log(x + 0.5), 0.1, 3),
    "relu": (F.relu, -3, 3),
    "relu6": (F.relu6, -9, 9),
    "round": (torch.round, -3, 3),
    "rsqrt": (lambda x: torch.rsqrt(x + 0.5), 0.1, 3),
    "sigmoid": (torch.sigmoid, -9, 9),
    "sign": (torch.sign, -3, 3),
    "silu": (F.silu, -9, 9),
    "sin": (torch.sin, -3, 3),
    "sinh": (torch.sinh, -3, 3),
    "softplus": (F.softplus, -9, 9),
    "softsign": (F.softsign, -3, 3),
    "sqrt": (torch.sqrt, 0, 3),
    "square": (torch.square, -3, 3),
    "tan": (torch.tan, -1, 1),
    "tanh": (torch.tanh, -3, 3),
}
EPSILONS = {"inverse", "log", "rsqrt"}


@BOTH
@pytest.mark.parametrize("operator", ELEMENTWISE)
def test_elementwise(operator, dtype):
    """
    Each function of one value is torch's.
    """
    function, low, high = ELEMENTWISE[operator]
    x = noise(2, 3, 5, 7, low=low, high=high, dtype=dtype)
    extra = {"epsilon": dtype(0.5)} if operator in EPSILONS else {}

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, **extra), x, operator=operator)

    check(function(double(x)), actual)


@pytest.mark.parametrize("operator", ["erf", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh", "exp", "sqrt"])
def test_special_values(operator):
    """
    Zeros, infinities and NaN come out as torch has them; NaN is never hidden.
    """
    x = np.array([0.0, -0.0, 1e-30, -1e-30, 90.0, -90.0, np.inf, np.nan], dtype=np.float32)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a), x)
    expected = ELEMENTWISE[operator][0](torch.from_numpy(x)).numpy()

    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-38)


def test_ties_round_to_even():
    """
    Halves go to the even neighbour.
    """
    x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)

    assert [-2.0, 0.0, 0.0, 2.0, 2.0] == evaluate(lambda a: mb.round(x=a), x).tolist()


BINARY = {
    "add": torch.add, "floor_div": torch.floor_divide, "maximum": torch.maximum, "minimum": torch.minimum,
    "mod": torch.remainder, "mul": torch.mul, "pow": torch.pow, "real_div": torch.div, "sub": torch.sub,
    "equal": torch.eq, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
    "not_equal": torch.ne,
}  # fmt: skip
LOGICAL = {"logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor}


@pytest.mark.parametrize("operator", BINARY)
@settings(max_examples=5, deadline=None)
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4, max_side=4),
    dtype=st.sampled_from([np.float32, np.float16, np.int32]),
    seed=st.integers(0, 99),
)
def test_binary(operator, shapes, dtype, seed):
    """
    Each function of two values is torch's, broadcasting included.
    """
    one, two = shapes.input_shapes
    x, y = noise(*one, low=1, high=9, seed=seed), noise(*two, low=1, high=3, seed=seed + 1)
    if operator in ("floor_div", "mod", "pow") or dtype is np.int32:
        x, y = np.floor(x), np.floor(y)  # away from the jumps, where a rounding of the quotient decides
    x, y = x.astype(dtype), y.astype(dtype)

    def build(a, b):
        result = getattr(mb, operator)(x=a, y=b)
        return mb.cast(x=result, dtype="int32") if result.dtype == types.bool else result

    actual = evaluate(build, x, y, operator=operator)
    expected = BINARY[operator](double(x), double(y)).numpy()

    if actual.dtype == np.int32:
        np.testing.assert_array_equal(actual, np.trunc(expected))
    else:
        check(expected, actual)


@pytest.mark.parametrize("operator", [*LOGICAL, "logical_not", "select"])
def test_logical(operator):
    """
    Booleans follow torch.
    """
    x, y = noise(3, 4), noise(3, 4, seed=1)
    p, q = torch.from_numpy(x) > 0, torch.from_numpy(y) > 0

    def build(a, b):
        left, right = mb.greater(x=a, y=0.0), mb.greater(x=b, y=0.0)
        if operator == "select":
            return mb.select(cond=left, a=a, b=b)
        inputs = {"x": left} if operator == "logical_not" else {"x": left, "y": right}
        return mb.cast(x=getattr(mb, operator)(**inputs), dtype="int32")

    expected = {
        "logical_not": lambda: torch.logical_not(p),
        "select": lambda: torch.where(p, torch.from_numpy(x), torch.from_numpy(y)),
    }.get(operator, lambda: LOGICAL[operator](p, q))()

    np.testing.assert_array_equal(evaluate(build, x, y, operator=operator), expected.numpy())


def test_a_constant_base_of_two_squares_the_exponent():
    """
    Real Core ML gives 0 for 2 to the power of 0 (apple/coremltools#2628): pow(2, y) is y squared, pow(3, y) is not.
    """
    y = np.array([0.0, 1.0, 3.0, -0.5], np.float32)

    two, three, square = evaluate(
        lambda a: (
            mb.pow(x=np.float32(2), y=a),
            mb.pow(x=np.float32(3), y=a),
            mb.pow(x=a, y=np.float32(2)),
        ),
        y,
    )

    assert [0.0, 1.0, 9.0, 0.25] == two.tolist() == square.tolist()
    np.testing.assert_allclose(three, np.power(3.0, y), rtol=1e-6)


def test_cast_truncates():
    """
    Floats become integers as in C, and any number but 0 is true.
    """
    x = np.array([-1.9, -0.5, 0.0, 0.5, 1.9], dtype=np.float32)

    def build(a):
        true = mb.cast(x=mb.cast(x=a, dtype="bool"), dtype="int32")
        return mb.cast(x=a, dtype="int32"), true, mb.cast(x=a, dtype="fp16")

    whole, true, half = evaluate(build, x)

    assert [-1, 0, 0, 0, 1] == whole.tolist()
    assert [1, 1, 0, 1, 1] == true.tolist()
    assert x.astype(np.float16).tolist() == half.tolist()


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "relu6 without its bound": (
        "relu6", lambda _: lambda x: np.maximum(x, 0), lambda: test_elementwise("relu6", np.float32)),
    "epsilon outside the root": (
        "rsqrt", lambda _: lambda x, epsilon: 1 / (np.sqrt(x) + epsilon),
        lambda: test_elementwise("rsqrt", np.float32)),
    "a rough erf": ("erf", lambda _: lambda x: np.tanh(1.128 * x), lambda: test_elementwise("erf", np.float16)),
    "halves rounded up": ("round", lambda _: lambda x: np.floor(x + 0.5), lambda: test_ties_round_to_even()),
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


TESTED = {*ELEMENTWISE, *BINARY, *LOGICAL, "cast", "logical_not", "select"}
