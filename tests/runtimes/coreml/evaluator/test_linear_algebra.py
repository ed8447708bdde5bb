"""Matrix products against torch, inside a package that was saved and read back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mil_programs import BOTH, FEW, check_sum, double, evaluate, inner, mb, noise

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator import linear_algebra
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError


@BOTH
def test_linear(dtype):
    """
    A linear layer is torch's, for inputs of rank 2 and 3.
    """
    weight, bias = noise(5, 7, low=-1, high=1, dtype=dtype), noise(5, low=-1, high=1, dtype=dtype, seed=1)
    for shape in [(3, 7), (2, 3, 7)]:
        x = noise(*shape, low=-1, high=1, dtype=dtype, seed=2)
        with_bias, without = evaluate(
            lambda a: (mb.linear(x=a, weight=weight, bias=bias), mb.linear(x=a, weight=weight)), x, operator="linear"
        )
        check_sum(F.linear(double(x), double(weight), double(bias)), with_bias)
        check_sum(F.linear(double(x), double(weight)), without)


@FEW
@given(
    left=st.booleans(), right=st.booleans(), batch=st.integers(1, 3), dtype=st.sampled_from([np.float32, np.float16])
)
def test_matmul(left, right, batch, dtype):
    """
    Products of stacks of matrices are torch's, transposed or not, broadcasting the stacks.
    """
    x = noise(batch, 1, *((4, 3) if left else (3, 4)), low=-1, high=1, dtype=dtype)
    y = noise(2, *((5, 4) if right else (4, 5)), low=-1, high=1, dtype=dtype, seed=1)

    actual = evaluate(lambda a, b: mb.matmul(x=a, y=b, transpose_x=left, transpose_y=right), x, y, operator="matmul")

    one = double(x).mT if left else double(x)
    check_sum(one @ (double(y).mT if right else double(y)), actual)


def test_einsum():
    """
    The two equations that the operator set allows are torch's.
    """
    x, y = noise(2, 3, 4, 5, low=-1, high=1), noise(2, 5, 4, 6, low=-1, high=1, seed=1)

    actual = evaluate(lambda a, b: mb.einsum(values=(a, b), equation="nchw,nwhu->nchu"), x, y, operator="einsum")

    check_sum(torch.einsum("nchw,nwhu->nchu", double(x), double(y)), actual)


def test_a_product_with_a_vector_is_refused():
    """
    Core ML crashes or gives another shape (apple/coremltools#2263), so nothing is computed in its place.
    """
    with pytest.raises(UnsupportedFormError, match="product with a vector"):
        linear_algebra.matmul(noise(4), noise(2, 4, 3), transpose_x=False, transpose_y=False)


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "no transposition": (
        "matmul", lambda right: lambda x, y, **_: right(x, y.swapaxes(1, 2), transpose_x=False, transpose_y=True),
        inner(test_matmul, True, False, 1, np.float32)),
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


TESTED = {"linear", "matmul", "einsum"}
