"""Reductions against torch, inside a package that was saved and read back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import IOS16, IOS17, check, double, evaluate, inner, mb, noise

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS

REDUCTIONS = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_prod": lambda x, axes, keep: x.log().sum(axes, keep).exp(),
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}


@pytest.mark.parametrize("operator", REDUCTIONS)
@settings(max_examples=6, deadline=None)
@given(
    where=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["keep", "front", "back"])), min_size=1, max_size=3),
    keep=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_reductions(operator, where, keep, dtype):
    """
    Each reduction is torch's over any set of axes, counted from either end.
    """
    shape = [4, *(size for size, _ in where)]  # the first axis is kept: a result of rank 0 is no tensor
    picked = {"keep": None, "front": 1, "back": -len(where)}
    axes = [number + picked[side] for number, (_, side) in enumerate(where) if side != "keep"] or [1]
    x = noise(*shape, low=0.5, high=1.5, dtype=dtype)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, axes=axes, keep_dims=keep), x, operator=operator)

    check(REDUCTIONS[operator](double(x), tuple(axes), keep), actual, 4)


@pytest.mark.parametrize("opset", [IOS16, IOS17])
@pytest.mark.parametrize(("operator", "function"), [("reduce_argmax", torch.argmax), ("reduce_argmin", torch.argmin)])
def test_positions_of_extremes(operator, function, opset):
    """
    They are torch's.
    """
    x = noise(3, 4, 5)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, axis=1, keep_dims=True), x, opset=opset, operator=operator)

    np.testing.assert_array_equal(actual, function(torch.from_numpy(x), 1, keepdim=True).numpy())


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "another axis": (
        "reduce_mean", lambda right: lambda x, axes, keep_dims: right(x, axes=1 - axes, keep_dims=keep_dims),
        inner(test_reductions, "reduce_mean", [(4, "front")], True, np.float32)),
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


TESTED = {*REDUCTIONS, "reduce_argmax", "reduce_argmin"}
